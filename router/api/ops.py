"""Routes under `/ops` that inspect or operate: state, requests, drain, resume, abort, clear."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
from aiohttp import web

from router.api.author import author_of
from router.api.commands import MAX_ID_CHARACTERS, no_such_shard
from router.api.decode import decode, read_body
from router.api.errors import Refused
from router.api.ops_structs import (
    Aborted,
    AbortRequest,
    CacheCleared,
    CandidateRow,
    RequestReport,
    RequestRow,
    Requests,
    ShardChoice,
    StateReport,
)
from router.api.respond import SharedAnswer, json_response
from router.api.service import Service
from router.api.snapshots import snapshot_of
from router.catalog.repository import Choice
from router.control.loop import ReassessmentLoop
from router.control.swap_controller import SwapController
from router.scheduling.moves import Move
from router.scheduling.request import GenerationFailed, Request, Status
from telemetry.overview_reader import OverviewReader
from telemetry.prometheus import TgiMetrics
from telemetry.snapshot import MAX_REQUESTS, Moment, Snapshot
from telemetry.store import Store

MAX_EXIT_LAYERS = 2048  # of the latest tokens
OVERVIEW_SHARED_S = (
    0.1  # so that many who look cost hardly more than some, and no phase of a change is missed
)


class OpsApi:
    """Handlers of `/ops` that change no model. `store` holds the telemetry, and is told what goes on."""

    def __init__(
        self,
        service: Service,
        controller: SwapController,
        loop: ReassessmentLoop,
        store: Store,
        metrics: TgiMetrics,
    ):
        self._service = service
        self._dispatcher = service.dispatcher
        self._controller = controller
        self._loop = loop
        self._store = store
        self._metrics = metrics
        self._overview = SharedAnswer(OverviewReader(store).read, OVERVIEW_SHARED_S)
        store.describe = self.snapshot

    def snapshot(self) -> Snapshot:
        """What this router does now."""
        now, requests = asyncio.get_running_loop().time(), self._dispatcher.requests()
        reports = [_report(request, now) for request in requests[:MAX_REQUESTS]]
        return snapshot_of(self._store.router, self._state(), reports)

    async def overview(self, http: web.Request) -> web.Response:
        """The whole deployment; without Redis this router alone."""
        return await self._overview.response()

    async def state(self, http: web.Request) -> web.Response:
        return json_response(self._state())

    async def requests(self, http: web.Request) -> web.Response:
        now = asyncio.get_running_loop().time()
        return json_response(Requests([_row(request, now) for request in self._dispatcher.requests()]))

    async def request(self, http: web.Request) -> web.Response:
        request = self._find(http.match_info["id"])
        return json_response(_report(request, asyncio.get_running_loop().time()))

    async def drain(self, http: web.Request) -> web.Response:
        """Stop sending requests to one shard or to all; running requests continue."""
        return self._tell("drain", self._dispatcher.drain, http, await read_body(http))

    async def resume(self, http: web.Request) -> web.Response:
        return self._tell("resume", self._dispatcher.resume, http, await read_body(http))

    async def abort(self, http: web.Request) -> web.Response:
        asked = decode(await read_body(http), AbortRequest)
        request = self._find(str(asked.request_id))
        is_live = request.status is not Status.FINISHED
        self._dispatcher.abort(request, "The request was aborted by an operator.")
        why = "An operator asked for it." if is_live else "An operator asked for it, but it had ended."
        self._note("abort", http, why, asked)
        return json_response(Aborted(is_live))

    async def clear_cache(self, http: web.Request) -> web.Response:
        """Let no shard (or one) find what was computed of prompts and answers so far."""
        body = await read_body(http)
        asked = decode(body, ShardChoice) if body.strip() else ShardChoice()
        with self._known_shard(asked.shard):
            num_tokens = self._dispatcher.clear_cache(asked.shard)
        self._note("cache-clear", http, f"An operator asked for it; {num_tokens} tokens were known.", asked)
        return json_response(CacheCleared(num_tokens))

    def _tell(
        self, kind: str, command: Callable[[int | None], None], http: web.Request, body: bytes
    ) -> web.Response:
        asked = decode(body, ShardChoice) if body.strip() else ShardChoice()
        with self._known_shard(asked.shard):
            command(asked.shard)
        self._note(kind, http, "An operator asked for it.", asked)
        return json_response(self._state())

    @contextmanager
    def _known_shard(self, shard: int | None) -> Iterator[None]:
        try:
            yield
        except KeyError:
            raise no_such_shard(self._dispatcher.state().shards, shard) from None

    def _note(self, kind: str, http: web.Request, why: str, asked: ShardChoice | AbortRequest) -> None:
        author, given = author_of(http, self._service.config), msgspec.structs.asdict(asked)
        chosen = {name.removesuffix("_id"): value for name, value in given.items() if value is not None}
        self._controller.note(kind, author.by, why, origin=author.origin, chosen=chosen)

    def _find(self, id: str) -> Request:
        is_id = id.isdecimal() and len(id) <= MAX_ID_CHARACTERS
        request = self._dispatcher.find(int(id)) if is_id else None
        if request is None:
            message = f"There is no request {id[:MAX_ID_CHARACTERS]}: it is unknown, or it ended long ago."
            raise Refused(message, 404, "request_not_found", field="request_id")
        return request

    def _candidate_row(self, choice: Choice) -> CandidateRow:
        rows = [row for row in self._store.history.rows() if row.key[:2] == (choice.candidate, choice.depth)]
        return CandidateRow(
            candidate=choice.candidate,
            depth=choice.depth,
            num_layers=self._controller.catalog.entry(choice.candidate).num_layers,
            measured=[msgspec.structs.asdict(row) for row in rows],
        )

    def _state(self) -> StateReport:
        return StateReport(
            **msgspec.structs.asdict(self._dispatcher.state()),
            deployment=self._service.config.deployment,
            objective=self._controller.catalog.objective,
            candidates=[self._candidate_row(choice) for choice in self._controller.catalog.choices],
            pinned=None if self._controller.pinned is None else str(self._controller.pinned),
            threshold=self._controller.threshold,
            floor=self._controller.catalog.repository.floor.agreement,
            refusals=self._metrics.failures,
            redis="ok" if self._store.is_ok else "lost",
            reassessment=self._loop.state,
        )


def _row(request: Request, now: float) -> RequestRow:
    return RequestRow(
        id=request.id,
        label=request.spec.label,
        status=request.status.value,
        outcome=_outcome(request),
        shard=request.shard,
        model=request.segments[-1].model if request.segments else "",
        version=request.segments[-1].version if request.segments else "",
        num_prompt_tokens=request.num_prompt_tokens,
        num_computed_tokens=request.num_computed_tokens,
        num_generated_tokens=len(request.outputs),
        max_new_tokens=request.spec.max_new_tokens,
        priority=request.spec.priority,
        num_preemptions=request.num_preemptions,
        num_shard_deaths=request.num_shard_deaths,
        age_ms=round(1000 * (now - request.timeline.arrived), 1),
    )


def _outcome(request: Request) -> str | None:
    outcome = request.outcome
    if outcome is None:
        return None
    return outcome.kind if isinstance(outcome, GenerationFailed) else outcome.value


def _report(request: Request, now: float) -> RequestReport:
    error = str(request.outcome) if isinstance(request.outcome, GenerationFailed) else None
    since = max(0, len(request.outputs) - MAX_EXIT_LAYERS)
    return RequestReport(
        request=_row(request, now),
        timeline=_moments(request),
        mean_exit_layer=request.mean_exit_layer,
        error=error,
        exit_layers=[output.exit_layer for output in request.outputs[since:]],
        exit_layers_from=since,
    )


def _moments(request: Request) -> list[Moment]:
    line = request.timeline

    def moment(at: float, what: str, move: Move | None = None, num_tokens: int = 0) -> Moment:
        at_ms = round(1000 * (at - line.arrived), 3)
        if move is None:
            return Moment(at_ms, what, num_generated_tokens=num_tokens)
        return Moment(at_ms, what, move.shard, move.model, move.depth, move.num_generated_tokens)

    moments = [moment(line.arrived, "queued")]
    moments += [moment(move.at, move.what, move) for move in request.moves]
    if line.first_token is not None:
        moments.append(moment(line.first_token, "first_token", num_tokens=1))
    moments.sort(key=lambda one: one.at_ms)
    if line.finished is not None:
        moments.append(
            moment(line.finished, f"finished: {_outcome(request)}", num_tokens=len(request.outputs))
        )
    return moments
