"""The runs of one part: every system once in each round, one server at a time, two loads on each.

All systems have equal memory. The first load has equally many requests in flight, as many as fit in the
static systems' memory. The second has as many as fit in HELIOS's memory: in other systems the rest waits.
"""

import secrets
from collections.abc import Sequence

import msgspec

from loadgen.cli.units import BadQuantity, num_bytes
from loadgen.load.measure import Screen, measure
from loadgen.load.options import LoadOptions
from loadgen.load.plan import Plan, plan_of
from loadgen.load.target import reach
from loadgen.paper import probe
from loadgen.paper.footprint import TooSmall
from loadgen.paper.options import HeliosOptions, Size
from loadgen.paper.subject import Subject
from loadgen.paper.systems import EARLY, HELIOS, Budget, System, systems_of
from loadgen.results.summary import Measured, summarise
from loadgen.servers.helios import serving

BLOCK_TOKENS = 16  # tokens in a server's KV block
SPARE_TOKENS = 64  # beyond the longest request


class Load(msgspec.Struct, frozen=True):
    """A number of requests in flight, and its reason."""

    name: str
    in_flight: int


class SystemRun(msgspec.Struct, frozen=True):
    """One run of one system."""

    system: str
    load: Load
    measured: Measured


class Part(msgspec.Struct, frozen=True):
    """Measurements of one part."""

    subject: Subject
    budget: Budget
    systems: list[System]
    loads: list[Load]
    runs: list[SystemRun]

    def runs_of(self, system: str, load: Load) -> list[Measured]:
        """A system's runs under a load, by round."""
        return [run.measured for run in self.runs if (run.system, run.load) == (system, load)]


class Experiment:
    """The experiment: common options and display."""

    def __init__(self, options: HeliosOptions, size: Size, screen: Screen):
        self._options = options
        self._size = size
        self._screen = screen
        self._admin_key = secrets.token_hex(16)

    async def run(self, subject: Subject) -> Part:
        """Measure one part. Raises `Unusable`, `BadQuantity`, OSError."""
        self._screen.title = f"{subject.name}: asking what it weighs"
        budget = await self._budget(subject)
        try:
            systems = systems_of(subject, budget, self._options.depth, self._common(budget))
        except TooSmall as error:
            raise BadQuantity(f"--memory is too small: {error}") from None
        loads = _loads(systems)
        runs = []
        for index in range(self._size.rounds):
            for system in _turns(systems, index):
                self._screen.title = (
                    f"{subject.name}, round {index + 1} of {self._size.rounds}: {system.name}"
                )
                runs += await self._round(subject, system, loads, index)
        return Part(subject, budget, systems, loads, runs)

    async def _round(
        self, subject: Subject, system: System, loads: Sequence[Load], index: int
    ) -> list[SystemRun]:
        """All loads on one server, from its start to its end."""
        done, flags = [], (*system.flags, *_room(loads[-1].in_flight, system))
        async with serving(flags) as url:
            for load in loads:
                plan = self._plan(subject, load)
                async with reach(url, plan) as target:
                    run = await measure(target, plan, self._screen, seed_offset=index)
                run.label = f"{self._screen.title}, {load.name}"
                done.append(SystemRun(system.name, load, Measured(run, summarise(run, plan.slo, plan.trim))))
        return done

    async def _budget(self, subject: Subject) -> Budget:
        """The memory budget: as given, else what the static systems need for their batch."""
        size, plan = self._size, self._plan(subject, Load("probe", 1))
        footprint, prompt_tokens = await probe.footprint(subject, plan, self._device_flags)
        request_tokens = _whole_blocks(prompt_tokens + size.output_tokens[1])
        needed = footprint.total_bytes(footprint.num_layers, size.batch, request_tokens)
        memory = num_bytes(self._options.memory) if self._options.memory else needed
        return Budget(memory, request_tokens, footprint)

    def _common(self, budget: Budget) -> tuple[str, ...]:
        """Flags of every system."""
        longest = ("--max-total-tokens", str(budget.request_tokens + SPARE_TOKENS))
        watts = ("--watts", str(self._options.watts)) if self._options.watts else ()
        # rounds repeat their prompts, which the paper's systems compute each time
        return (*longest, *watts, "--no-prefix-cache", "--admin-key", self._admin_key, *self._device_flags)

    @property
    def _device_flags(self) -> tuple[str, ...]:
        return ("--device", self._options.device, "--log-level", "warning")

    def _plan(self, subject: Subject, load: Load) -> Plan:
        """The plan: a closed loop over prompts whose classes follow one another."""
        few, many = self._size.output_tokens
        return plan_of(
            LoadOptions(
                dataset=subject.dataset,
                workload=",".join(dict.fromkeys(subject.classes)),
                drift=_phases(subject.classes, max(self._size.requests, 2 * load.in_flight)),
                concurrency=load.in_flight,
                output_tokens=f"uniform:{few}:{many}",
                eos="ignore" if subject.is_replay else "obey",
                chat_template=not subject.is_replay,
                admin_key=self._admin_key,
                seed=self._options.seed,
            )
        )


def _whole_blocks(num_tokens: int) -> int:
    """Tokens rounded up to whole blocks."""
    return -(-num_tokens // BLOCK_TOKENS) * BLOCK_TOKENS


def _loads(systems: Sequence[System]) -> list[Load]:
    """Two loads: as many requests as fit in the static systems, and as many as fit in HELIOS."""
    batch = {system.name: system.largest_batch for system in systems}
    equal = Load("equal requests in flight", batch[EARLY])
    return [equal, Load("each at its own largest batch", max(batch[EARLY], batch[HELIOS]))]


def _turns(systems: Sequence[System], index: int) -> list[System]:
    """The order of a round: each system comes first in turn."""
    first = index % len(systems)
    return [*systems[first:], *systems[:first]]


def _room(in_flight: int, system: System) -> tuple[str, ...]:
    """Flags for a queue that admits all requests in flight."""
    return (
        "--max-concurrent-requests",
        str(in_flight + system.largest_batch),
        "--max-queued-tokens",
        "10000000",
    )


def _phases(classes: Sequence[str], num_requests: int) -> str:
    """A schedule of classes that follow one another."""
    each, rest = divmod(max(num_requests, len(classes)), len(classes))
    return ", ".join(f"{name}@{each + (index < rest)}" for index, name in enumerate(classes))
