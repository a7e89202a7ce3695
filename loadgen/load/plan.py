"""Turns options into a plan: a workload and a pace. Raises `BadQuantity`, OSError."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from loadgen.cli.units import BadQuantity, seconds, share, weights
from loadgen.load.options import LoadOptions
from loadgen.load.run import Pace
from loadgen.load.slo import SLO
from loadgen.load.trim import Trim
from loadgen.traffic.arrivals import Bursts, Spacing, arrival_times, parse_rate
from loadgen.traffic.datasets import SHIPPED, Conversation, read_dataset, shipped
from loadgen.traffic.drift import Phase, Schedule
from loadgen.traffic.filler import Filler
from loadgen.traffic.lengths import Lengths
from loadgen.traffic.traces import TraceRow, read_trace
from loadgen.traffic.workloads import Manner, PromptWorkload, RandomWorkload, TraceWorkload, Workload

DEFAULT_CONCURRENCY = 8
DEFAULT_DURATION_S = 30.0
DEFAULT_INPUT = "128"


class Plan(msgspec.Struct, frozen=True):
    """A checked load, which can run any number of times."""

    options: LoadOptions
    schedule: Schedule
    prompts: list[Conversation]
    rows: list[TraceRow]
    slo: SLO
    trim: Trim

    @property
    def needs_filler(self) -> bool:
        return not self.prompts or self.options.prefix_tokens > 0

    @property
    def ignores_eos(self) -> bool:
        """True if answers must have all requested tokens."""
        eos = self.options.eos
        return eos == "ignore" or (eos == "auto" and not self.prompts)

    def workload(self, filler: Filler, seed_offset: int = 0) -> Workload:
        manner = _manner(self.options, self.options.seed + seed_offset)
        if self.prompts:
            return PromptWorkload(self.prompts, self.schedule, manner, filler)
        if self.rows:
            return TraceWorkload(self.rows, manner, filler)
        return RandomWorkload(Lengths.parse(self.options.input_tokens or DEFAULT_INPUT), manner, filler)

    @property
    def duration_s(self) -> float:
        """Seconds during which requests start; infinite if their number ends the run."""
        options = self.options
        if options.duration is not None:
            return seconds(options.duration)
        if self.rows:
            return self.rows[-1].at_s / options.trace_speed + 1e-6
        if self.schedule.duration_s not in (None, float("inf")):
            return float(self.schedule.duration_s or 0)
        return float("inf") if self.num_requests is not None else DEFAULT_DURATION_S

    @property
    def num_requests(self) -> int | None:
        return self.options.requests if self.options.requests is not None else self.schedule.num_requests

    def pace(self) -> Pace:
        options = self.options
        times = self._times()
        is_closed = times is None
        return Pace(
            concurrency=options.concurrency or (DEFAULT_CONCURRENCY if is_closed else None),
            times=times,
            num_requests=self.num_requests,
            duration_s=self.duration_s,
            drain_s=float("inf") if options.drain is None else seconds(options.drain),
        )

    def _times(self) -> Iterator[float] | None:
        options = self.options
        if options.rate is not None:
            pieces = parse_rate(options.rate, self.duration_s)
            return arrival_times(pieces, Spacing.parse(options.spacing), options.seed)
        if options.bursts is not None:
            return Bursts.parse(options.bursts).times(self.duration_s)
        if self.rows and options.concurrency is None:
            return (row.at_s / options.trace_speed for row in self.rows)
        return None


def plan_of(options: LoadOptions) -> Plan:
    """Read a load's files and check all options, before any server is contacted."""
    _check(options)
    rows = read_trace(Path(options.trace)) if options.trace else []
    prompts, mixture = _prompts(options, bool(rows))
    schedule = Schedule.parse(options.drift) if options.drift else Schedule((Phase(mixture),))
    known = {prompt.group for prompt in prompts}
    unknown = schedule.groups - known if prompts else set()
    if unknown:
        raise BadQuantity(
            f"no prompts of class {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}"
        )
    trim = Trim(options.warmup, options.cooldown)
    plan = Plan(options, schedule, prompts, rows, SLO.parse(options.slo), trim)
    plan.workload(Filler())
    plan.pace()
    return plan


def _check(options: LoadOptions) -> None:
    given = [name for name in ("rate", "bursts", "trace") if getattr(options, name) is not None]
    if len(given) > 1 and given != ["rate", "trace"]:
        raise BadQuantity(f"--{given[0]} and --{given[1]} say two different paces")
    if options.drift and (options.trace or options.input_tokens):
        raise BadQuantity("--drift needs prompts by class, which --trace and --input-tokens do not have")
    for name in ("concurrency", "requests", "turns", "prefixes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise BadQuantity(f"--{name} must be at least 1, not {value}")
    if options.trace_speed <= 0:
        raise BadQuantity(f"--trace-speed must be above 0, not {options.trace_speed}")
    for part in (options.warmup, options.cooldown):
        share(part) if part.strip().endswith("%") else seconds(part)


def _prompts(options: LoadOptions, has_rows: bool) -> tuple[list[Conversation], dict[str, float]]:
    """Prompts, and the weight of each class; none for random prompts and for a trace's lengths."""
    if options.dataset is not None:
        found = read_dataset(Path(options.dataset))
        if options.classes is not None:
            mixture = weights(options.classes)
        else:
            mixture = {
                group: float(sum(p.group == group for p in found)) for group in {p.group for p in found}
            }
        return found, dict(sorted(mixture.items()))
    if options.input_tokens is not None or options.workload == "random" or has_rows:
        return [], {}
    mixture = weights(options.workload)
    names = set(mixture) | (Schedule.parse(options.drift).groups if options.drift else set())
    return list(chain.from_iterable(shipped(name) for name in SHIPPED if name in names)) or _none(
        names
    ), mixture


def _none(names: set[str]) -> list[Conversation]:
    raise BadQuantity(
        f"no prompts of class {', '.join(sorted(names))}; there are {', '.join(SHIPPED)} and random"
    )


def _manner(options: LoadOptions, seed: int) -> Manner:
    uses_answers = options.output_tokens == "dataset"
    return Manner(
        seed=seed,
        output=Lengths("fixed", 128) if uses_answers else Lengths.parse(options.output_tokens),
        uses_answer_lengths=uses_answers,
        max_turns=options.turns,
        think_s=seconds(options.think),
        cancel_share=share(options.cancel),
        cancel_within_s=None if options.cancel_within is None else seconds(options.cancel_within),
        prefix_tokens=options.prefix_tokens,
        num_prefixes=options.prefixes,
    )


def settings_of(options: LoadOptions) -> dict[str, Any]:
    """Options that differ from the defaults, for a report, without keys."""
    hidden = {"out", "quiet", "label", "url", "a", "b", "api_key", "admin_key"}
    found = {}
    for field in msgspec.structs.fields(options):
        value = getattr(options, field.name)
        if field.name not in hidden and value != field.default:
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found
