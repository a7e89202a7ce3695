"""Balances load over the shards: the queue they share, each shard's quota of it, and which shard to wake.

A request goes to the shard with the least outstanding work among those that could start it. Knows neither
processes nor connections.
"""

import asyncio
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec

from router.catalog.repository import Choice
from router.catalog.served_model import ModelIdentity, Requirements, RoutingKey, ServedModel
from router.fleet.class_routing import Routes
from router.fleet.live_requests import RequestRegistry
from router.scheduling.admission import EVERYTHING, LOOKAHEAD, AdmissionQuota
from router.scheduling.request import GenerationFailed, Request
from router.scheduling.scheduler import Scheduler
from router.scheduling.shadow_scoring import ScoreQueue, ShadowScore
from router.scheduling.waiting_queue import BEGUN, Lane, WaitingQueue
from shard.quality.agreement import Agreement

_MOST_COMPARED = 8  # shards: of many, the least loaded of a few is nearly as good (Mitzenmacher 2001)


class Shard(Protocol):
    """A shard as the balancer sees it."""

    scheduler: Scheduler | None  # None: it does not serve
    is_draining: bool

    @property
    def is_responsive(self) -> bool: ...

    @property
    def is_hopeless(self) -> bool:
        """It does not serve, and restarts have failed."""
        ...

    def has_model(self, identity: ModelIdentity) -> bool:
        """It has the model that began a request, or will have it after its restart."""
        ...

    def can_serve(self, requirements: Requirements) -> bool:
        """A request with these requirements may run there, now or later."""
        ...

    def wake(self) -> None:
        """Make it schedule soon, if it has work."""
        ...


class Balancer:
    """The waiting queue and the shards that take from it."""

    def __init__(self, registry: RequestRegistry, score_rate: float = 0.0, lookahead: int = LOOKAHEAD):
        self._lookahead = lookahead
        self.queue = WaitingQueue()
        self.routes = Routes(self._serving)
        self.score_queue = ScoreQueue(score_rate)
        self.agreement = Agreement()
        self.registry = registry
        self.serving = asyncio.Event()  # set once a shard has become ready
        self.shards: list[Shard] = []
        self._deadline: asyncio.TimerHandle | None = None
        self._looked_at = 0  # index of the next shard to compare, round robin

    @property
    def is_hopeless(self) -> bool:
        return all(shard.is_hopeless for shard in self.shards)

    def add(self, request: Request) -> None:
        """Queue a new request and wake a shard for it."""
        self.queue.add(request)
        self._watch_deadlines()
        self.nudge()

    def route(self, admitted: Mapping[str, frozenset[Choice]]) -> None:
        """Reserve each class of prompts for the admitted choices, while a shard serves one of them."""
        self.routes.admit(admitted)
        self.nudge()

    def quota(self, shard: Shard) -> AdmissionQuota:
        """The quota that a shard may take now, so that all shards get equal load.

        Water-filling: the level all eligible shards would reach if the queue were spread evenly; this one
        admits up to it. The least loaded may always admit one, as one request may exceed every level. Shards
        that can take none of the same requests are left out.
        """
        lanes = _lanes(shard)
        if not self.queue:
            return AdmissionQuota(lanes=lanes)
        affine_elsewhere, excluded_keys = self._affine_elsewhere(shard), self._excluded_keys(shard)
        quota = AdmissionQuota(
            lanes=lanes,
            affine_elsewhere=affine_elsewhere,
            excluded_keys=excluded_keys,
            lookahead=self._lookahead,
        )
        num_waiting, waiting = self.queue.load(without=excluded_keys)
        if not num_waiting:
            return quota
        able = (other for other in self._others(shard) if self._may_take(other, excluded_keys))
        rivals = list(itertools.islice(able, _MOST_COMPARED))
        chooses = self._lookahead > 1 and _caches(shard)
        saving = functools.partial(_saving, shard, rivals) if chooses else None
        if not rivals:
            return msgspec.structs.replace(quota, saving=saving)
        loads = [_load(other) for other in rivals]
        num_sharing = 1 + len(loads)
        if num_sharing > _MOST_COMPARED:
            for_them = waiting * num_sharing // self._num_rivals(shard)
        else:
            for_them = waiting
        level = water_level([_load(shard), *loads], for_them)
        most = max(min(loads), level - waiting / num_waiting / 2)
        return msgspec.structs.replace(quota, max_outstanding_tokens=most, saving=saving)

    def nudge(self) -> None:
        """Wake a shard that could start a waiting request: one that knows its prompt, or the least loaded.

        A shard with all steps in flight needs no waking: it schedules when its next output comes.
        """
        if not self.queue:
            return
        able = list(itertools.islice(filter(self._may_take, self._others(None)), _MOST_COMPARED))
        chosen = self._knowing(able) or min(able, key=_load, default=None)
        if chosen is not None and chosen.scheduler is not None and chosen.scheduler.has_slot:
            chosen.wake()

    def offer_to_score(self, request: Request) -> None:
        """Queue a finished answer for scoring if it is in the sample. Wakes an idle shard."""
        if self.score_queue.offer(request):
            idle = [shard for shard in self.shards if _is_idle(shard)]
            for shard in idle[:1]:
                shard.wake()

    def note_scores(self, scored: ShadowScore) -> None:
        """Record full depth's scores of an answer."""
        outputs, scores = scored.request.outputs, scored.scores
        pairs = [(o, score) for o, score in zip(outputs, scores, strict=True) if not o.is_forced]
        tokens = [(output.exit_layer, output.id == score.choice) for output, score in pairs]
        self.agreement.add(tokens, [score.logprob for _, score in pairs])
        self.registry.tell(lambda observer: observer.on_scored(scored.request, scores))

    def expire(self, now: float) -> None:
        """Fail requests whose deadline to start has passed."""
        for request in self.queue.expire(now):
            error = "The request could not start before its deadline: the server has too much to do."
            self.registry.fail(request, GenerationFailed(error, "overloaded", 429, retry_after_s=1), now)

    def fail_hopeless(self, now: float) -> None:
        """After a change of models, fail waiting requests that no remaining model can run."""
        for requirements in self.queue.distinct_requirements():
            if any(shard.can_serve(requirements) for shard in self.shards):
                continue
            for request in self.queue.take_all(requirements):
                self.registry.fail(request, _abandonment(requirements), now)

    def fail_waiting(self, error: GenerationFailed, now: float) -> None:
        """Fail all waiting requests."""
        while (request := self.queue.head()) is not None:
            self.queue.take(request)
            self.registry.fail(request, error, now)

    def _knowing(self, able: list[Shard]) -> Shard | None:
        """The shard that has computed most of what the next request begins with, within its quota.

        What it has computed counts against its load, so that no shard gets all that begins alike.
        """
        head = self.queue.head()
        if head is None or len(able) < 2:
            return None
        cached = {id(shard): _num_cached(shard, head) for shard in able}
        best = min(able, key=lambda shard: _load(shard) - cached[id(shard)])
        if not cached[id(best)] or _load(best) > self.quota(best).max_outstanding_tokens:
            return None
        return best

    def _serving(self) -> Iterator[ServedModel]:
        """For each shard that begins requests, the model that they begin on."""
        for shard in self.shards:
            if shard.scheduler is not None and not shard.is_draining:
                yield shard.scheduler.newest

    def _others(self, shard: Shard | None) -> Iterator[Shard]:
        """All other shards, starting where the last look ended, so that each is compared in turn."""
        count = len(self.shards)
        first = self._looked_at % max(1, count)
        for index in range(first, first + count):
            self._looked_at = index + 1
            other = self.shards[index - count if index >= count else index]
            if other is not shard:
                yield other

    def _may_take(self, shard: Shard, without: frozenset[RoutingKey] = frozenset()) -> bool:
        """It could start a waiting request whose routing key is not in `without`."""
        scheduler = shard.scheduler
        if scheduler is None or not shard.is_responsive:
            return False
        excluded_keys = self._excluded_keys(shard) | without
        if excluded_keys and not self.queue.load(without=excluded_keys)[0]:
            return False
        return scheduler.can_start(
            AdmissionQuota(
                lanes=_lanes(shard),
                affine_elsewhere=self._affine_elsewhere(shard),
                excluded_keys=excluded_keys,
            )
        )

    def _excluded_keys(self, shard: Shard) -> frozenset[RoutingKey]:
        """Routing keys that this shard leaves to better suited ones."""
        scheduler = shard.scheduler
        return frozenset() if scheduler is None else self.routes.excluded_keys(scheduler.newest.choice)

    def _num_rivals(self, shard: Shard) -> int:
        """Number of shards that take the same requests from the queue."""
        if shard.scheduler is None or not self.routes.tells_apart:
            return len(self.shards)
        return max(1, self.routes.num_rivals(shard.scheduler.newest.choice))

    def _affine_elsewhere(self, shard: Shard) -> frozenset[ModelIdentity]:
        """Models that interrupted requests wait for and that other shards have."""
        affinities = self.queue.affinities()
        if not affinities:
            return frozenset()
        others = [other for other in self.shards if other is not shard]
        return frozenset(
            affinity for affinity in affinities if any(other.has_model(affinity) for other in others)
        )

    def _watch_deadlines(self) -> None:
        """Keep one timer for the earliest deadline."""
        at = self.queue.next_deadline
        if at is None or (self._deadline is not None and self._deadline.when() <= at):
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_at(at, self._meet_deadline)

    def _meet_deadline(self) -> None:
        self._deadline = None
        self.expire(asyncio.get_running_loop().time())
        self._watch_deadlines()


def _lanes(shard: Shard) -> tuple[Lane, ...]:
    return BEGUN if shard.is_draining else EVERYTHING.lanes


def _abandonment(requirements: Requirements) -> GenerationFailed:
    if requirements.affinity is None and requirements.exact:
        error = "`exact` needs all layers, and no shard has them any more."
        return GenerationFailed(error, "validation", 422)
    if requirements.affinity is None and requirements.constrained:
        error = "Output cannot be constrained by any shard any more."
        return GenerationFailed(error, "validation", 422)
    what = "answer must be exact" if requirements.exact else "prompt was given as token ids"
    return GenerationFailed(f"The model was changed for another, and the {what}: send the request again.")


def _is_idle(shard: Shard) -> bool:
    """It has no steps in flight, and can score."""
    scheduler = shard.scheduler
    if scheduler is None or shard.is_draining:
        return False
    return scheduler.can_score and scheduler.num_in_flight == 0


def _num_cached(shard: Shard, request: Request) -> int:
    return 0 if shard.scheduler is None else shard.scheduler.num_cached_tokens(request)


def _caches(shard: Shard) -> bool:
    return shard.scheduler is not None and shard.scheduler.caches_prefixes


def _saving(shard: Shard, rivals: list[Shard], request: Request) -> int:
    """Tokens that a request saves on a shard, less those that it would save on another one.

    What a rival has computed counts less by as much as the rival is busier, so that no shard gets all that
    begins alike.
    """
    load = _load(shard)
    elsewhere = (_num_cached(rival, request) - max(0, _load(rival) - load) for rival in rivals)
    return _num_cached(shard, request) - max(0, *elsewhere, 0)


def _load(shard: Shard) -> int:
    return shard.scheduler.num_outstanding_tokens if shard.scheduler is not None else 0


def water_level(loads: list[int], amount: int) -> float:
    """Water level after pouring `amount` over `loads`, the lowest first."""
    loads = sorted(loads)
    total = amount
    for count, load in enumerate(loads, 1):
        total += load
        if count == len(loads) or total <= loads[count] * count:
            break
    return total / count
