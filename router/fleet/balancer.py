"""The shards as one: the queue they share, who may take how much of it, and who is woken for it.

A request goes to the shard with the least outstanding work among those that could start it. Knows neither
processes nor connections.
"""

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from typing import Protocol

from router.catalog.repository import Choice
from router.catalog.served_model import Identity, Kind, Need
from router.fleet.class_routing import Routes
from router.fleet.live_requests import Ledger
from router.scheduling.admission import EVERYTHING, Share
from router.scheduling.request import GenerationFailed, Request
from router.scheduling.scheduler import Scheduler
from router.scheduling.shadow_scoring import Backlog, Reading
from router.scheduling.waiting_queue import Lane, WaitingQueue
from shard.quality.agreement import Agreement

_MOST_COMPARED = 8  # shards: of many, the least loaded of a few is nearly as good (Mitzenmacher 2001)
_BEGUN = (Lane.RETURNED, Lane.SUSPECT)


class Member(Protocol):
    """A shard as the others see it."""

    scheduler: Scheduler | None  # None: it does not serve
    is_draining: bool

    @property
    def is_responsive(self) -> bool: ...

    @property
    def is_hopeless(self) -> bool:
        """It does not serve, and starting it again has been of no use."""
        ...

    def has_home(self, identity: Identity) -> bool:
        """It has the model that a request was begun on, or will have it when it is back."""
        ...

    def can_serve(self, need: Need) -> bool:
        """Such a request may run there, if not now then later."""
        ...

    def wake(self) -> None:
        """Have it schedule soon, if a step of it is wanted."""
        ...


class Pool:
    """The waiting queue and the shards that take from it."""

    def __init__(self, ledger: Ledger, score_rate: float = 0.0):
        self.queue = WaitingQueue()
        self.routes = Routes()
        self.backlog = Backlog(score_rate)
        self.agreement = Agreement()
        self.ledger = ledger
        self.serving = asyncio.Event()  # set once a shard has become ready
        self.members: list[Member] = []
        self._deadline: asyncio.TimerHandle | None = None
        self._looked_at = 0  # members, in turns

    @property
    def is_hopeless(self) -> bool:
        return all(member.is_hopeless for member in self.members)

    def add(self, request: Request) -> None:
        """Queue a new request and wake a shard for it."""
        self.queue.add(request)
        self._watch_deadlines()
        self.nudge()

    def route(self, admitted: Mapping[str, frozenset[Choice]]) -> None:
        """Which choices prompts of each kind are left to, while a shard serves one of them."""
        self.routes.admit(admitted)
        self.nudge()

    def share(self, member: Member) -> Share:
        """What a shard may take now, so that all come to have equally much to do.

        Were the queue poured over the shards, it would fill all to one level: a shard takes what brings it
        nearest to that. The one with the least to do may always take, as one request may be too much for all.
        Shards that may take nothing of what this one may are no part of it.
        """
        lanes = _lanes(member)
        if not self.queue:
            return Share(lanes=lanes)
        elsewhere, foreign = self._elsewhere(member), self._foreign(member)
        num_waiting, waiting = self.queue.load(without=foreign)
        if not num_waiting:
            return Share(lanes=lanes, elsewhere=elsewhere, foreign=foreign)
        able = (other for other in self._others(member) if self._may_take(other, foreign))
        loads = [_load(other) for other in itertools.islice(able, _MOST_COMPARED)]
        if not loads:
            return Share(lanes=lanes, elsewhere=elsewhere, foreign=foreign)
        num_sharing = 1 + len(loads)
        if num_sharing > _MOST_COMPARED:
            for_them = waiting * num_sharing // self._num_rivals(member)
        else:
            for_them = waiting
        level = _level([_load(member), *loads], for_them)
        return Share(max(min(loads), level - waiting / num_waiting / 2), lanes, elsewhere, foreign)

    def nudge(self) -> None:
        """Wake the shard with the least to do among those that could start what waits.

        If its slots are taken it needs no waking: it will schedule when its next output comes.
        """
        if not self.queue:
            return
        able = itertools.islice(filter(self._may_take, self._others(None)), _MOST_COMPARED)
        chosen = min(able, key=_load, default=None)
        if chosen is not None and chosen.scheduler is not None and chosen.scheduler.has_slot:
            chosen.wake()

    def offer_to_score(self, request: Request) -> None:
        """Have a finished answer read again, if it is among the share. A shard with nothing to do wakes."""
        if self.backlog.offer(request):
            idle = [member for member in self.members if _is_idle(member)]
            for member in idle[:1]:
                member.wake()

    def note_scores(self, reading: Reading) -> None:
        """Enter what full depth says of an answer."""
        outputs, scores = reading.request.outputs, reading.scores
        pairs = zip(outputs, scores, strict=True)
        tokens = [(output.exit_layer, output.id == score.choice) for output, score in pairs]
        self.agreement.add(tokens, [score.logprob for score in scores])
        self.ledger.tell(lambda observer: observer.on_scored(reading.request, scores))

    def expire(self, now: float) -> None:
        """Refuse what can no longer start before its deadline."""
        for request in self.queue.expire(now):
            error = "The request could not start before its deadline: the server has too much to do."
            self.ledger.fail(request, GenerationFailed(error, "overloaded", 429, retry_after_s=1), now)

    def fail_hopeless(self, now: float) -> None:
        """After a change of models: end what waits, and can run on none of those that are left."""
        for need in self.queue.needs():
            if any(member.can_serve(need) for member in self.members):
                continue
            for request in self.queue.take_all(need):
                self.ledger.fail(request, _abandonment(need), now)

    def fail_waiting(self, error: GenerationFailed, now: float) -> None:
        """End everything that waits."""
        while (request := self.queue.head()) is not None:
            self.queue.take(request)
            self.ledger.fail(request, error, now)

    def _others(self, member: Member | None) -> Iterator[Member]:
        """All but one, from where the last look ended: few are asked, and all have their turn."""
        count = len(self.members)
        first = self._looked_at % max(1, count)
        for index in range(first, first + count):
            self._looked_at = index + 1
            other = self.members[index - count if index >= count else index]
            if other is not member:
                yield other

    def _may_take(self, member: Member, without: frozenset[Kind] = frozenset()) -> bool:
        """It could start something that waits, and is of no kind `without`."""
        scheduler = member.scheduler
        if scheduler is None or not member.is_responsive:
            return False
        foreign = self._foreign(member) | without
        if foreign and not self.queue.load(without=foreign)[0]:
            return False
        return scheduler.can_start(
            Share(lanes=_lanes(member), elsewhere=self._elsewhere(member), foreign=foreign)
        )

    def _foreign(self, member: Member) -> frozenset[Kind]:
        """Kinds of prompts that others are better for."""
        scheduler = member.scheduler
        return frozenset() if scheduler is None else self.routes.foreign(scheduler.newest.choice)

    def _num_rivals(self, member: Member) -> int:
        """Shards that take from the queue what this one does."""
        if member.scheduler is None or not self.routes.tells_apart:
            return len(self.members)
        return max(1, self.routes.num_rivals(member.scheduler.newest.choice))

    def _elsewhere(self, member: Member) -> frozenset[Identity]:
        """Models that interrupted requests wait for, and other shards have."""
        homes = self.queue.homes()
        if not homes:
            return frozenset()
        others = [other for other in self.members if other is not member]
        return frozenset(home for home in homes if any(other.has_home(home) for other in others))

    def _watch_deadlines(self) -> None:
        """Keep one timer, for the earliest deadline."""
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


def _lanes(member: Member) -> tuple[Lane, ...]:
    return _BEGUN if member.is_draining else EVERYTHING.lanes


def _abandonment(need: Need) -> GenerationFailed:
    if need.home is None and need.exact:
        error = "`exact` needs all layers, and no shard has them any more."
        return GenerationFailed(error, "validation", 422)
    what = "answer must be exact" if need.exact else "prompt was given as token ids"
    return GenerationFailed(f"The model was changed for another, and the {what}: send the request again.")


def _is_idle(member: Member) -> bool:
    """Nothing will wake it by itself, and it can read."""
    scheduler = member.scheduler
    if scheduler is None or member.is_draining:
        return False
    return scheduler.reads and scheduler.num_in_flight == 0


def _load(member: Member) -> int:
    return member.scheduler.num_outstanding_tokens if member.scheduler is not None else 0


def _level(loads: list[int], amount: int) -> float:
    """How high `amount` stands when it is poured over `loads`, the lowest first."""
    loads = sorted(loads)
    total = amount
    for count, load in enumerate(loads, 1):
        total += load
        if count == len(loads) or total <= loads[count] * count:
            break
    return total / count
