"""A measured part of known figures."""

from array import array
from pathlib import Path

from loadgen.client.ops import Decision
from loadgen.client.records import Segment
from loadgen.client.scrape import Scrape
from loadgen.load.slo import SLO
from loadgen.load.trim import Trim
from loadgen.paper.experiment import Load, Part, SystemRun
from loadgen.paper.footprint import Load as Loaded
from loadgen.paper.footprint import footprint_of
from loadgen.paper.subject import Subject
from loadgen.paper.systems import EARLY, FULL, HELIOS, Budget, systems_of
from loadgen.results.summary import Measured, summarise
from tests.loadgen.making import record, run_of

LOADS = [Load("equal requests in flight", 8), Load("each at its own largest batch", 40)]
SPEED = {FULL: 1.0, EARLY: 1.0, HELIOS: 2.0}
DEPTH = {FULL: 24, EARLY: 24, HELIOS: 6}
NUM_TOKENS = 10


def subject(is_replay: bool = True) -> Subject:
    return Subject(
        name="exit replay" if is_replay else "real weights",
        model="small",
        num_layers=24,
        early_exit=("--exits", "exits"),
        depths=(6, 12),
        repository=Path("repository.toml"),
        classes=("chat",),
        is_replay=is_replay,
    )


def measured(system: str, round_speed: float) -> Measured:
    """Thirty answers of ten tokens, one after another."""
    step_s = 0.1 / (SPEED[system] * round_speed)
    records = []
    for number in range(30):
        at = number * NUM_TOKENS * step_s
        tokens = [at + step_s * (index + 1) for index in range(NUM_TOKENS)]
        depth = DEPTH[system]
        records.append(
            record(
                at,
                tokens,
                number=number,
                version="v",
                finish_reason="length",
                exit_layers=array("H", [depth] * NUM_TOKENS),
                confidences=array("d", [float("nan")] * NUM_TOKENS),
                segments=[Segment("small", "v", depth, 0)],
            )
        )
    joules = 30.0 * NUM_TOKENS / SPEED[system]
    scrapes = [Scrape(0.0, {"helios_joules_total": 5.0}), Scrape(1.0, {"helios_joules_total": 5.0 + joules})]
    decisions = [
        Decision("1", 1000.5, "loop", "evaluate", "small@6", "To be tried.", "committed", {"load": 1.0}),
        Decision("2", 1001.0, "loop", "lighten", "small@6", "Cheaper.", "committed", {"load": 1.0}),
        Decision("3", 1002.0, "loop", "stay", "small@6", "It is the best.", "committed"),
    ]
    run = run_of(
        records, is_open_loop=False, scrapes=scrapes, decisions=decisions if system == HELIOS else []
    )
    return Measured(run, summarise(run, SLO.parse(()), Trim()))


def part(is_replay: bool = True, round_speeds: tuple[float, ...] = (1.0, 1.5, 0.7)) -> Part:
    footprint = footprint_of(Loaded(24, 2_600, 24.0), Loaded(6, 800, 6.0))
    budget = Budget(footprint.total_bytes(24, 8, 100), 100, footprint)
    asked = subject(is_replay)
    runs = [
        SystemRun(system, load, measured(system, speed))
        for speed in round_speeds
        for load in LOADS
        for system in (FULL, EARLY, HELIOS)
    ]
    return Part(asked, budget, systems_of(asked, budget, None, ()), LOADS, runs)
