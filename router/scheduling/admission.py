"""Selects the waiting request that a shard may start next, its model and its tokenizer. Pure."""

import itertools
import math
from collections.abc import Callable

import msgspec

from router.catalog.served_model import ModelIdentity, Requirements, RoutingKey
from router.scheduling.loaded_models import LoadedModel, LoadedModels
from router.scheduling.request import GenerationFailed, Request
from router.scheduling.waiting_queue import Lane, WaitingQueue, lane_of
from router.text.tokenizer import Tokenizer

LOOKAHEAD = 16  # waiting requests that are compared by what is computed of them
MOST_PASSED_OVER = 16  # times that a request may see a later one begin before it


class AdmissionQuota(msgspec.Struct, frozen=True):
    """What one shard may take from the waiting queue: some lanes, up to a limit of outstanding work.

    A request begun on a model `affine_elsewhere` is left to the shard that has it, and requests of
    `excluded_keys` to shards whose models are good at their prompts. `saving` says how many tokens less a
    request takes here than where it would go instead; without it requests begin in their order.
    """

    max_outstanding_tokens: float = math.inf
    lanes: tuple[Lane, ...] = tuple(Lane)
    affine_elsewhere: frozenset[ModelIdentity] = frozenset()
    excluded_keys: frozenset[RoutingKey] = frozenset()
    saving: Callable[[Request], int] | None = None
    lookahead: int = LOOKAHEAD


EVERYTHING = AdmissionQuota()


class ShardAdmission:
    """Admission to one shard from the queue that all shards share."""

    def __init__(self, queue: WaitingQueue, loaded_models: LoadedModels, block_size: int):
        self.is_holding = False  # nothing starts; what runs goes on
        self.is_trying = False  # a suspect in the step being formed: no two are tried in one step
        self._queue = queue
        self._loaded_models = loaded_models
        self._block_size = block_size
        self._unfit: list[tuple[Request, GenerationFailed]] = []
        self._to_encode: list[tuple[Request, Tokenizer]] = []

    @property
    def has_waiting(self) -> bool:
        return bool(self._queue)

    def next(self, quota: AdmissionQuota, is_empty: bool) -> tuple[Request, LoadedModel] | None:
        """The request that may start now, and its model; `is_empty`: nothing runs on the shard.

        A request that only an older model may serve and that does not fit there is skipped, not waited for.
        """
        full: set[int] = set()  # epochs
        while not self.is_holding:
            found = self._head(quota, full)
            if found is None or self._fits(*found, is_empty):
                return found
            if found[1] is self._loaded_models.newest:
                return None
            full.add(found[1].epoch)
        return None

    def prefer(self, head: Request, quota: AdmissionQuota, is_empty: bool) -> Request:
        """Which of the first few begins on the newest model, instead of the `head` that may: what saves most.

        None is passed over more than `MOST_PASSED_OVER` times, none for one of lower priority, and none that
        has a deadline.
        """
        if quota.saving is None or lane_of(head) is not Lane.FRESH:
            return head
        newest = self._loaded_models.newest

        def suits(requirements: Requirements) -> bool:
            place = self._loaded_models.place(requirements, quota.affine_elsewhere, quota.excluded_keys)
            return place is newest

        few = self._queue.first(quota.lookahead, Lane.FRESH, suits)
        may_begin = [request for request in _in_reach(few) if self._fits(request, newest, is_empty)]
        best = max(may_begin, key=quota.saving, default=head)
        for request in itertools.takewhile(lambda other: other is not best, few):
            request.num_passed_over += 1
        return best

    def take(self, request: Request, loaded_model: LoadedModel) -> bool:
        """Take a request out of the queue; False if it cannot start on this model now or ever."""
        self._queue.take(request)
        tokenizer = loaded_model.served_model.tokenizer
        if not request.reads_alike(tokenizer):
            self._to_encode.append((request, tokenizer))
            return False
        try:
            request.check_fits(loaded_model.served_model)
        except GenerationFailed as error:
            self._unfit.append((request, error))
            return False
        loaded_model.claim(self.num_blocks(request.num_tokens))
        self.is_trying |= request.is_suspect
        return True

    def take_unfit(self) -> list[tuple[Request, GenerationFailed]]:
        """Requests that their model cannot take, and why; clears the list."""
        unfit, self._unfit = self._unfit, []
        return unfit

    def take_to_encode(self) -> list[tuple[Request, Tokenizer]]:
        """Requests to encode for another tokenizer and queue again; clears the list."""
        to_encode, self._to_encode = self._to_encode, []
        return to_encode

    def put_back(self, request: Request) -> None:
        """Queue a request that a shard has lost."""
        request.start_over()
        self._queue.add(request)

    def num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def _head(self, quota: AdmissionQuota, full: set[int]) -> tuple[Request, LoadedModel] | None:
        """The next request that fits here, and its model."""
        lanes = [lane for lane in quota.lanes if lane is not Lane.SUSPECT or not self.is_trying]

        def place(requirements: Requirements) -> LoadedModel | None:
            loaded_model = self._loaded_models.place(
                requirements, quota.affine_elsewhere, quota.excluded_keys
            )
            return loaded_model if loaded_model is not None and loaded_model.epoch not in full else None

        request = self._queue.head(lanes, lambda requirements: place(requirements) is not None)
        loaded_model = None if request is None else place(request.requirements)
        return None if request is None or loaded_model is None else (request, loaded_model)

    def _fits(self, request: Request, loaded_model: LoadedModel, is_empty: bool) -> bool:
        """True if its tokens find blocks, with one block to spare for each running request. Optimistic.

        When answers grow further the shard preempts the youngest. An empty batch takes any request, since the
        count of free blocks may be older than the last drops.
        """
        num_needed = self.num_blocks(request.num_tokens) + loaded_model.num_running + 1
        return is_empty or num_needed <= loaded_model.num_unclaimed_blocks


def _in_reach(first: list[Request]) -> list[Request]:
    """Those of the first requests that may begin before the ones ahead of them."""
    reach: list[Request] = []
    for request in first:
        if not reach or request.spec.priority >= reach[-1].spec.priority:
            reach.append(request)
        if request.num_passed_over >= MOST_PASSED_OVER or request.spec.deadline_s is not None:
            break
    return reach
