"""The scheduler of one shard: starts waiting requests, and forms steps of the running ones.

Pure and synchronous: no clock, no socket, no event loop. A step is formed while the one before it still
runs, so every decision counts tokens in flight as computed.
"""

from collections import deque
from collections.abc import Iterable

import msgspec

from router.catalog.served_model import ModelIdentity, Requirements, ServedModel
from router.scheduling.admission import EVERYTHING, AdmissionQuota, ShardAdmission
from router.scheduling.cache_state import CacheTotals
from router.scheduling.loaded_models import LoadedModel, LoadedModels
from router.scheduling.prefix_index import PrefixIndex
from router.scheduling.request import GenerationFailed, Request
from router.scheduling.shadow_scoring import ScoreQueue, ShadowScore, scorer_for
from router.scheduling.step_builder import Batch, new_sequence
from router.scheduling.waiting_queue import Lane, WaitingQueue
from router.text.tokenizer import Tokenizer
from shard.messages import NewSequence, SequenceOutput, Step, StepOutput, Work
from telemetry.snapshot import CacheState

MAX_IN_FLIGHT = 2  # steps: one runs, the next waits on the shard
MAX_SHARD_DEATHS = 2  # a request that ran at so many deaths is not tried again
_PREFILL_SHARE = 4  # prefill gets at least one in this many tokens of a step


class Limits(msgspec.Struct, frozen=True):
    """What one shard can take."""

    max_batch_size: int  # sequences
    max_batch_tokens: int  # computed in a step
    block_size: int  # tokens


class Delivery(msgspec.Struct, frozen=True):
    """A step's outputs for one request."""

    request: Request
    made: SequenceOutput


class Update(msgspec.Struct, frozen=True):
    """The results of a step. Preempted requests are back in the queue already."""

    deliveries: list[Delivery]
    preempted: list[Request]
    scored: ShadowScore | None = None  # a completely scored answer
    gone: list[Request] = []  # in the queue too, as the shard no longer has their model


class Scheduler:
    """Schedules one shard between its start and its death. All schedulers share the waiting queue.

    Requests begin on the newest model; running ones keep theirs. With a score queue, spare time goes to
    scoring finished answers.
    """

    def __init__(
        self,
        shard: int,
        limits: Limits,
        served_model: ServedModel,
        queue: WaitingQueue,
        score_queue: ScoreQueue | None = None,
        prefixes: PrefixIndex | None = None,
    ):
        self.shard = shard
        self.limits = limits
        self.num_outstanding_tokens = 0  # to compute, and expected to be generated
        self._loaded_models = LoadedModels(served_model)
        self._admission = ShardAdmission(queue, self._loaded_models, limits.block_size)
        self._score_queue = score_queue
        self._prefixes = prefixes
        self._cache = CacheTotals()
        self._clears_cache = False
        self._scorer = scorer_for(served_model, score_queue)
        self.running: dict[int, Request] = {}
        self._drops: list[tuple[int, int]] = []
        self.in_flight: deque[Step] = deque()
        self.num_steps = 0

    @property
    def is_holding(self) -> bool:
        """It starts nothing; running requests go on."""
        return self._admission.is_holding

    @is_holding.setter
    def is_holding(self, holds: bool) -> None:
        self._admission.is_holding = holds

    @property
    def num_running(self) -> int:
        return len(self.running)

    @property
    def newest(self) -> ServedModel:
        """The model that requests begin on."""
        return self._loaded_models.newest.served_model

    @property
    def num_models(self) -> int:
        """Number of loaded models: the newest, and older ones that still have sequences."""
        return len(self._loaded_models)

    @property
    def num_blocks(self) -> int:
        """Blocks of the newest model, as of the last output."""
        return self._loaded_models.newest.num_blocks

    @property
    def num_free_blocks(self) -> int:
        return self._loaded_models.newest.num_free_blocks

    @property
    def cache(self) -> CacheState:
        """The shard's prefix cache, as of the last output."""
        return self._cache.state

    @property
    def caches_prefixes(self) -> bool:
        return self._prefixes is not None

    @property
    def can_score(self) -> bool:
        """The shard can compute full depth's scores."""
        return self._scorer is not None

    @property
    def num_in_flight(self) -> int:
        """Steps that the shard has not answered."""
        return len(self.in_flight)

    @property
    def is_at_rest(self) -> bool:
        """Nothing runs, and the shard has dropped all earlier sequences."""
        return not self.running and not self._drops and not self.in_flight

    @property
    def has_slot(self) -> bool:
        """A step may be sent now; else the next output makes room for one."""
        return len(self.in_flight) < MAX_IN_FLIGHT

    def can_start(self, quota: AdmissionQuota = EVERYTHING) -> bool:
        """The next step may start a waiting request."""
        return self._next(quota) is not None

    def schedule(self, now: float, quota: AdmissionQuota = EVERYTHING) -> Step | None:
        """The next step, or None without work for the shard. O(batch), for any number of waiting requests.

        Decoding goes first, so that streams keep their pace, but leaves a share to prefill. A prompt longer
        than a step gives half of prefill's share to the others while there are any.
        """
        if not self.has_slot:
            return None
        decoding, prefilling = self._take_stock()
        batch = Batch(self.limits.max_batch_tokens)
        wants_prefill = bool(prefilling) or self._next(quota) is not None
        turn = batch.num_left - wants_prefill * -(-batch.num_left // _PREFILL_SHARE)
        batch.decode(decoding[:turn])
        long, short = _split(prefilling, batch.num_left)
        if long:
            batch.add(long[0], batch.num_left - batch.num_left // 2)
        batch.fill(short)
        new = self._start(batch, now, quota)
        batch.fill(long)
        batch.decode(decoding[turn:])
        self._rotate(decoding[:turn], decoding[turn:])
        scoring, begun = self._score(batch.num_left, quota)
        return self._form(batch, scoring, new + begun)

    def update(self, output: StepOutput) -> Update:
        """Apply the output of the oldest step in flight. Tokens of ended or stale attempts are dropped.

        Raises `ValueError` when it belongs to another step.
        """
        if not self.in_flight or self.in_flight[0].number != output.number:
            raise ValueError(f"step {output.number} was answered out of turn")
        running = self.running
        for work in self.in_flight.popleft().work:
            request = running.get(work.id)
            if request is not None and request.attempt == work.attempt:
                request.num_in_flight_tokens -= work.num_tokens
        deliveries = []
        for made in output.outputs:
            request = running.get(made.id)
            if request is not None and request.attempt == made.attempt:
                request.num_computed_tokens = made.num_computed_tokens
                deliveries.append(Delivery(request, made))
                if made.num_cached_tokens:
                    request.note_cached(made.num_cached_tokens)
                if made.finish is not None or made.error:
                    del self.running[made.id]
                    self._note_prefix(request, request.num_computed_tokens)
        if output.cache is not None:
            self._cache.add(output.cache)
        scored = self._scorer.update(output) if self._scorer is not None else None
        gone = self._return(output.gone, lost_affinity=True)
        preempted = self._return(output.preempted)
        self._loaded_models.update(output, self.running.values())
        return Update(deliveries, preempted, scored, gone)

    def take_unfit(self) -> list[tuple[Request, GenerationFailed]]:
        """Requests that their model cannot take, and why; clears the list."""
        return self._admission.take_unfit()

    def take_to_encode(self) -> list[tuple[Request, Tokenizer]]:
        """Requests to encode for another tokenizer and queue again; clears the list."""
        return self._admission.take_to_encode()

    def has_model(self, identity: ModelIdentity) -> bool:
        """It has the model that began a request."""
        return self._loaded_models.has_model(identity)

    def can_serve(self, requirements: Requirements) -> bool:
        """A request with these requirements may start here, now or later."""
        return self._loaded_models.place(requirements) is not None

    def adopt(
        self, served_model: ServedModel, limits: Limits, joined: int | None = None, num_kept_blocks: int = 0
    ) -> None:
        """Begin requests on a newly committed model; running ones keep theirs.

        `joined` and `num_kept_blocks`: see `Committed`.
        """
        self.limits = limits
        if self._scorer is not None:
            self._drops += self._scorer.give_up()
        self._loaded_models.adopt(served_model, joined, self.running.values())
        self._scorer = scorer_for(served_model, self._score_queue)
        if self._prefixes is not None:
            self._prefixes.change(served_model.ready.num_blocks, num_kept_blocks)

    def clear_cache(self) -> int:
        """Let the shard find nothing that was computed before its next step; the blocks that it knew."""
        self._clears_cache = True
        if self._prefixes is not None:
            self._prefixes.clear()
        return self.cache.known_blocks

    def num_cached_tokens(self, request: Request) -> int:
        """Tokens of a waiting request's prompt that the shard has most likely computed."""
        if self._prefixes is None:
            return 0
        size = self.limits.block_size
        return self._prefixes.num_found(request.block_keys(size)) * size

    def stays(self, served_model: ServedModel) -> list[Request]:
        """Running requests that could not go on with another model."""
        return [request for request in self.running.values() if not request.may_move_to(served_model)]

    def migrate(self) -> list[Request]:
        """Queue again the requests of older models that can continue on the newest."""
        loaded_models = self._loaded_models
        older = [
            request
            for request in self.running.values()
            if loaded_models.model_of(request) is not loaded_models.newest
        ]
        loaded_models.close_older()
        return self._evict(request for request in older if request.may_move_to(self.newest))

    def evict(self) -> list[Request]:
        """Take all requests off the shard, back to the queue."""
        return self._evict(self.running.values())

    def drop(self, request: Request) -> bool:
        """Remove a running request that was aborted or hit a stop string. False if not running."""
        if self.running.pop(request.id, None) is None:
            return False
        self._note_prefix(request, request.num_computed_tokens)
        self._drops.append((request.id, request.attempt))
        return True

    def release(self) -> None:
        """After a death that no request caused, return all requests to the queue."""
        running = list(self.running.values())
        self.running.clear()
        self._put_back(running)

    def lose(self) -> list[Request]:
        """After a death, queue the shard's requests again; returns those that are not tried any more.

        The cause was in the oldest unanswered step. If a suspect was tried in it, only the suspect is blamed.
        """
        present = self.in_flight[0].work if self.in_flight else []
        blamed = [request for work in present if (request := self._find(work.id, work.attempt)) is not None]
        for request in [request for request in blamed if request.is_suspect] or blamed:
            request.note_shard_death()
        running = list(self.running.values())
        self.running.clear()
        self._put_back(request for request in running if request.num_shard_deaths < MAX_SHARD_DEATHS)
        return [request for request in running if request.num_shard_deaths >= MAX_SHARD_DEATHS]

    def _take_stock(self) -> tuple[list[Request], list[Request]]:
        """Running requests with pending tokens: those with one (decode), and those with more (prefill)."""
        decoding: list[Request] = []
        prefilling: list[Request] = []
        num_outstanding = 0
        self._admission.is_trying = False
        claims: dict[int, list[int]] = {}  # by epoch, the blocks that each request needs yet
        size = self.limits.block_size
        for request in self.running.values():  # the loop that steps of many streams spend their time in
            num_tokens, num_computed = request.num_tokens, request.num_computed_tokens
            num_missing = num_tokens - num_computed
            num_pending = num_missing - request.num_in_flight_tokens
            num_outstanding += num_missing + request.num_expected_tokens
            if num_pending > 0:
                (decoding if num_pending == 1 else prefilling).append(request)
                self._admission.is_trying |= request.is_suspect
            elif request.num_wanted_tokens:
                decoding.append(request)
            assert request.served_model is not None
            num_blocks = -(-num_tokens // size) + -num_computed // size
            claims.setdefault(request.served_model.epoch, []).append(num_blocks)
        self.num_outstanding_tokens = num_outstanding
        self._loaded_models.count(claims)
        return decoding, prefilling

    def _start(self, batch: Batch, now: float, quota: AdmissionQuota) -> list[NewSequence]:
        """Start waiting requests while there is room and budget."""
        new = []
        while batch.num_left > 0 and (found := self._next(quota)) is not None:
            request, loaded_model = found
            if loaded_model is self._loaded_models.newest:
                request = self._admission.prefer(request, quota, is_empty=not self.running)
            if not self._admission.take(request, loaded_model):
                continue
            self.running[request.id] = request
            self.num_outstanding_tokens += request.num_outstanding_tokens
            request.start(self.shard, loaded_model.served_model, now)
            self._note_prefix(request, request.num_tokens)
            new.append(new_sequence(request, loaded_model.epoch))
            batch.fill([request])
        return new

    def _note_prefix(self, request: Request, num_tokens: int) -> None:
        """Note what the newest model has computed of a request, or is about to."""
        is_found = request.served_model is self.newest and not request.sampling.prompt_logprobs
        if self._prefixes is not None and is_found:
            size = self.limits.block_size
            self._prefixes.add(request.block_keys(size)[: num_tokens // size])

    def _next(self, quota: AdmissionQuota) -> tuple[Request, LoadedModel] | None:
        """The waiting request that may start now, and its model."""
        is_full = len(self.running) >= self.limits.max_batch_size
        if is_full or self.num_outstanding_tokens > quota.max_outstanding_tokens:
            return None
        return self._admission.next(quota, is_empty=not self.running)

    def _rotate(self, served: list[Request], passed_over: list[Request]) -> None:
        """If a step cannot hold every stream, put those left out first in the next step."""
        for request in served if passed_over else []:
            self.running[request.id] = self.running.pop(request.id)

    def _score(self, num_left: int, quota: AdmissionQuota) -> tuple[list[Work], list[NewSequence]]:
        """Continue scoring a finished answer, unless a request waits."""
        if self._scorer is None:
            return [], []
        is_full = len(self.running) >= self.limits.max_batch_size
        if is_full and self._scorer.is_patient and not self.is_holding:
            return [], []
        if self._admission.has_waiting or self.is_holding or Lane.FRESH not in quota.lanes:
            self._drops += self._scorer.give_up()
            return [], []
        if num_left == 0 or is_full:
            return [], []
        begun = self._scorer.begin(self._loaded_models.newest.num_unclaimed_blocks)
        return self._scorer.ask(num_left, self.limits.max_batch_tokens), begun

    def _form(self, batch: Batch, scoring: list[Work], new: list[NewSequence]) -> Step | None:
        if not batch.wishes and not scoring and not self._drops and not self._clears_cache:
            return None
        work = [Work(request.id, request.attempt, count) for request, count in batch.wishes.items()]
        work += scoring
        self.num_steps += 1
        step = Step(self.num_steps, work, new, self._drops, self._clears_cache)
        self._drops, self._clears_cache = [], False
        self.in_flight.append(step)
        return step

    def _return(self, lost: list[tuple[int, int]], lost_affinity: bool = False) -> list[Request]:
        """Queue again requests that the shard no longer holds."""
        found = [self._find(id, attempt) for id, attempt in lost]
        returned = [request for request in found if request is not None]
        for request in returned:
            del self.running[request.id]
            request.num_preemptions += not lost_affinity
            request.lost_affinity = lost_affinity
        self._put_back(returned)
        return returned

    def _evict(self, requests: Iterable[Request]) -> list[Request]:
        evicted = list(requests)
        for request in evicted:
            self.drop(request)
        self._put_back(evicted)
        return evicted

    def _put_back(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self._admission.put_back(request)

    def _find(self, id: int, attempt: int) -> Request | None:
        request = self.running.get(id)
        return request if request is not None and request.attempt == attempt else None


def _split(prefilling: list[Request], num_tokens: int) -> tuple[list[Request], list[Request]]:
    """Split requests into those whose pending tokens exceed one step, and the others."""
    long = [request for request in prefilling if request.num_pending_tokens > num_tokens]
    return long, [request for request in prefilling if request.num_pending_tokens <= num_tokens]
