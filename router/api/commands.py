"""Commands under `/ops` that change what is served, and the diary of all decisions."""

from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from router.api.author import Author, author_of
from router.api.decode import decode, read_body
from router.api.errors import Invalid, Refused
from router.api.ops_structs import (
    Accepted,
    Decisions,
    PinRequest,
    ShardChoice,
    SwapRequest,
    ThresholdRequest,
)
from router.api.query import LATEST, Number, Parameter
from router.api.respond import json_response
from router.api.service import Service
from router.catalog.catalog import UnknownCandidate
from router.catalog.repository import Choice
from router.catalog.served_model import Target
from router.control.swap_controller import ChangeRequest, SwapController
from router.fleet.dispatcher import ShardState
from router.fleet.swap import Inflight, SwapOptions, SwapRefused
from telemetry.store import Store

MAX_ID_CHARACTERS = 40  # of a request or a decision; ours are shorter
_DEFAULT_LISTED = 50
_LIMIT = Number("limit", f"The most decisions; {_DEFAULT_LISTED}.", 1, 1000, is_whole=True)
_SINCE = Number("since", "Unix time in seconds: only what was decided later.", 0, LATEST)
DECISIONS_PARAMETERS: tuple[Parameter, ...] = (_LIMIT, _SINCE)


class CommandsApi:
    """Handlers of commands. Each answers at once with the id of a decision, which tells the outcome later."""

    def __init__(self, service: Service, controller: SwapController, store: Store):
        self._config = service.config
        self._dispatcher = service.dispatcher
        self._controller = controller
        self._store = store

    async def swap(self, http: web.Request) -> web.Response:
        asked = decode(await read_body(http), SwapRequest)
        with self._refusals(asked.shard):
            to = self._controller.catalog.choose(asked.candidate, asked.depth)
            options = self._options(asked.inflight)
            why = "An operator asked for it."
            return _accepted(
                self._controller.begin(
                    _change(self._author(http), "swap", why, to=to, options=options, shard=asked.shard)
                )
            )

    async def pin(self, http: web.Request) -> web.Response:
        """Serve one candidate and keep the reassessment loop from changing it."""
        asked = decode(await read_body(http), PinRequest)
        with self._refusals(None):
            to = self._controller.catalog.choose(asked.candidate, asked.depth)
            why = "An operator wants it to stay."
            change = _change(self._author(http), "pin", why, to=to, options=self._options(None))
            return _accepted(self._controller.pin(change))

    async def unpin(self, http: web.Request) -> web.Response:
        author = self._author(http)
        return _accepted(self._controller.unpin(author.by, author.origin))

    async def rollback(self, http: web.Request) -> web.Response:
        """Serve what was served before the last change."""
        body = await read_body(http)
        shard = (decode(body, ShardChoice) if body.strip() else ShardChoice()).shard
        with self._refusals(shard):
            to, options = self._controller.before(shard), self._options(None)
            why = "An operator went back to what served before."
            return _accepted(
                self._controller.begin(
                    _change(self._author(http), "rollback", why, to=to, options=options, shard=shard)
                )
            )

    async def threshold(self, http: web.Request) -> web.Response:
        """Set the exit threshold of future requests that give none."""
        asked = decode(await read_body(http), ThresholdRequest)
        if asked.exit_layer is not None:
            problem = (
                "is not supported: one threshold holds for all exits, each exit's own stand in exits.json"
            )
            raise Invalid("exit_layer", problem)
        author = self._author(http)
        return _accepted(self._controller.set_threshold(asked.value, author.by, author.origin))

    async def decisions(self, http: web.Request) -> web.Response:
        """List decisions, the latest first."""
        limit, since = int(_LIMIT.read(http, _DEFAULT_LISTED)), _SINCE.read(http, 0.0)
        found = await self._store.decisions(limit, since)
        return json_response(Decisions(found))

    async def decision(self, http: web.Request) -> web.Response:
        id = http.match_info["id"]
        found = await self._store.decision(id)
        if found is None:
            message = f"There is no decision {id[:MAX_ID_CHARACTERS]}: it was never taken, or long ago."
            raise Refused(message, 404, "decision_not_found")
        return json_response(found)

    def _author(self, http: web.Request) -> Author:
        return author_of(http, self._config)

    def _options(self, inflight: str | None) -> SwapOptions:
        wanted = Inflight(inflight or self._config.swap_inflight)
        return SwapOptions(wanted, self._config.swap_drain_ms / 1000)

    @contextmanager
    def _refusals(self, shard: int | None) -> Iterator[None]:
        """Turn refused changes into HTTP errors."""
        try:
            yield
        except UnknownCandidate as error:
            raise Refused(str(error), 422, "validation", field="candidate") from None
        except SwapRefused as error:
            raise Refused(str(error), 409, "conflict") from None
        except KeyError:
            raise no_such_shard(self._dispatcher.state().shards, shard) from None


def no_such_shard(shards: list[ShardState], shard: int | None) -> Invalid:
    known = ", ".join(str(other.id) for other in shards)
    return Invalid("shard", f"must be one of {known}. Given: {shard}")


def _change(
    author: Author,
    kind: str,
    why: str,
    *,
    to: Choice | Target,
    options: SwapOptions,
    shard: int | None = None,
) -> ChangeRequest:
    return ChangeRequest(
        kind=kind, by=author.by, origin=author.origin, why=why, to=to, options=options, shard=shard
    )


def _accepted(decision_id: str) -> web.Response:
    return json_response(Accepted(decision_id), status=202)
