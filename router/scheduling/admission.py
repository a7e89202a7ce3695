"""Which waiting request a shard may start next, on which of its models, and in whose tokens. Pure."""

import math

import msgspec

from router.catalog.served_model import Identity, Kind, Need
from router.scheduling.loaded_models import Room, Rooms
from router.scheduling.request import GenerationFailed, Request
from router.scheduling.waiting_queue import Lane, WaitingQueue


class Share(msgspec.Struct, frozen=True):
    """What one shard may take from the waiting queue: these lanes, while it has no more work than this.

    Who was begun on a model `elsewhere` is left to the shard that has it, and `foreign` kinds of prompts to
    shards whose models are good at them.
    """

    max_outstanding_tokens: float = math.inf
    lanes: tuple[Lane, ...] = tuple(Lane)
    elsewhere: frozenset[Identity] = frozenset()
    foreign: frozenset[Kind] = frozenset()


EVERYTHING = Share()


class Intake:
    """One shard's door. The queue before it is all shards'."""

    def __init__(self, queue: WaitingQueue, rooms: Rooms, block_size: int):
        self.is_holding = False  # nobody starts; who runs goes on
        self.is_trying = False  # a suspect in the step being formed: no two are tried in one step
        self._queue = queue
        self._rooms = rooms
        self._block_size = block_size
        self._unfit: list[tuple[Request, GenerationFailed]] = []

    @property
    def has_waiting(self) -> bool:
        return bool(self._queue)

    def next(self, share: Share, is_empty: bool) -> tuple[Request, Room] | None:
        """Who may start now, and where; `is_empty`: nobody runs on the shard.

        Who finds no room on an older model, which is the only place for it, is in nobody else's way.
        """
        full: set[int] = set()  # tickets
        while not self.is_holding:
            found = self._head(share, full)
            if found is None or self._fits(*found, is_empty):
                return found
            if found[1] is self._rooms.newest:
                return None
            full.add(found[1].ticket)
        return None

    def take(self, request: Request, room: Room) -> bool:
        """Take out of the queue who is to start, in the tokens of the model there; False if it cannot be."""
        self._queue.take(request)
        try:
            request.suit(room.generation)
        except GenerationFailed as error:
            self._unfit.append((request, error))
            return False
        room.claim(self.num_blocks(request.num_tokens))
        self.is_trying |= request.is_suspect
        return True

    def take_unfit(self) -> list[tuple[Request, GenerationFailed]]:
        """Requests that could not be made to suit the model that they were to start on, and why."""
        unfit, self._unfit = self._unfit, []
        return unfit

    def put_back(self, request: Request) -> None:
        """Queue again what a shard has lost."""
        request.start_over()
        self._queue.add(request)

    def num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def _head(self, share: Share, full: set[int]) -> tuple[Request, Room] | None:
        """Who goes next among those that have a place here."""
        lanes = [lane for lane in share.lanes if lane is not Lane.SUSPECT or not self.is_trying]

        def place(need: Need) -> Room | None:
            room = self._rooms.place(need, share.elsewhere, share.foreign)
            return room if room is not None and room.ticket not in full else None

        request = self._queue.head(lanes, lambda need: place(need) is not None)
        room = None if request is None else place(request.need)
        return None if request is None or room is None else (request, room)

    def _fits(self, request: Request, room: Room, is_empty: bool) -> bool:
        """Optimistic: its tokens have blocks, and every running request may grow by one block more.

        When answers grow further the shard preempts the youngest. An empty batch takes anything: no count of
        free blocks that is older than the last drops may keep it empty.
        """
        num_needed = self.num_blocks(request.num_tokens) + room.num_running + 1
        return is_empty or num_needed <= room.num_unclaimed_blocks
