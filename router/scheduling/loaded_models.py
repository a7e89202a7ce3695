"""The models that live in one shard, and the blocks each has, as far as its router knows. Pure."""

from collections.abc import Iterable

from router.catalog.served_model import Generation, Identity, Kind, Need
from router.scheduling.request import Request
from shard.messages import StepOutput


class Room:
    """One generation's blocks and how many sequences run on it."""

    def __init__(self, generation: Generation):
        self.generation = generation
        self.num_blocks = generation.ready.num_blocks
        self.num_free_blocks = generation.ready.num_blocks  # as of the last output
        self.num_unclaimed_blocks = generation.ready.num_blocks  # free, and not needed by prompts
        self.num_running = 0
        self.is_closed = False  # takes nobody back but those who can go nowhere else

    @property
    def ticket(self) -> int:
        return self.generation.ticket

    def claim(self, num_blocks: int) -> None:
        """Count a sequence that runs here and will need so many blocks more."""
        self.num_unclaimed_blocks -= num_blocks
        self.num_running += 1


class Rooms:
    """The newest generation, on which requests begin, and those before it that still have sequences."""

    def __init__(self, generation: Generation):
        self.newest = Room(generation)
        self._by_ticket = {generation.ticket: self.newest}

    def __len__(self) -> int:
        return len(set(self._by_ticket.values()))

    def of(self, request: Request) -> Room:
        """Where a running request runs."""
        assert request.generation is not None
        return self._by_ticket[request.generation.ticket]

    def adopt(self, generation: Generation, joined: int | None, running: Iterable[Request]) -> None:
        """Make a committed generation the newest. What nobody runs on is gone with that.

        `joined`: the ticket under which it has lived in the shard all along; its room is the newest one, too.
        """
        before = self._by_ticket.get(joined) if joined is not None else None
        self.newest = Room(generation)
        for ticket, room in self._by_ticket.items():
            self._by_ticket[ticket] = self.newest if room is before else room
        self._by_ticket[generation.ticket] = self.newest
        self._keep(set(), running)

    def close_older(self) -> None:
        """Let nobody return to an older generation who can go on with the newest."""
        for room in self._by_ticket.values():
            room.is_closed = room is not self.newest

    def count(self, running: Iterable[tuple[Request, int]]) -> None:
        """Take stock of who runs, and of how many blocks each needs for what it has to compute."""
        for room in self._by_ticket.values():
            room.num_unclaimed_blocks, room.num_running = room.num_free_blocks, 0
        for request, num_blocks in running:
            self.of(request).claim(num_blocks)

    def update(self, output: StepOutput, running: Iterable[Request]) -> None:
        """Enter the blocks that the shard says there are, and forget what it no longer has."""
        told = self._by_ticket.get(output.generation)
        if told is not None:
            told.num_free_blocks = output.num_free_blocks
            told.num_blocks = told.num_blocks if output.num_blocks is None else output.num_blocks
        for report in output.older:
            if report.generation in self._by_ticket:
                self._by_ticket[report.generation].num_free_blocks = report.num_free_blocks
        if len(self._by_ticket) > 1:
            self._keep({report.generation for report in output.older}, running)

    def place(
        self, need: Need, elsewhere: frozenset[Identity] = frozenset(), foreign: frozenset[Kind] = frozenset()
    ) -> Room | None:
        """Where a waiting request may run: at home while that is here, else with the newest.

        Not here if its home is on another shard, one of `elsewhere`, or if it has none and is `foreign`.
        """
        home = next((room for room in self._by_ticket.values() if self._is_home(room, need)), None)
        if home is not None or need.home in elsewhere or (foreign and need.kind in foreign):
            return home
        return self.newest if self.newest.generation.takes(need) else None

    def has_home(self, identity: Identity) -> bool:
        """It is here, and open to who returns."""
        rooms = self._by_ticket.values()
        return any(room.generation.identity == identity and not room.is_closed for room in rooms)

    def _is_home(self, room: Room, need: Need) -> bool:
        if room.generation.identity != need.home:
            return False
        return not room.is_closed or not self.newest.generation.takes(need)

    def _keep(self, tickets: set[int], running: Iterable[Request]) -> None:
        tickets |= {request.generation.ticket for request in running if request.generation is not None}
        tickets.add(self.newest.ticket)
        tickets |= {room.ticket for ticket, room in self._by_ticket.items() if ticket in tickets}
        self._by_ticket = {ticket: room for ticket, room in self._by_ticket.items() if ticket in tickets}
