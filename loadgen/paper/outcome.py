"""Results of one part: medians of each system under each load, and HELIOS's gains over the others. Pure."""

import statistics
from collections.abc import Callable, Sequence

import msgspec

from loadgen.paper.experiment import Load, Part
from loadgen.paper.systems import HELIOS
from loadgen.results.stats import Interval, paired_ratio
from loadgen.results.summary import Measured, Summary


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One system under one load: medians over rounds, sums of counts. None: unknown."""

    tokens_per_s: float | None
    response_ms: float | None
    response_p95_ms: float | None
    joules_per_token: float | None
    most_running: float | None  # most requests observed on the shard at once
    largest_batch: int  # requests of the greatest length that fit, computed
    memory_bytes: float  # needed for as many requests as fit in the static systems
    share_by_layer: dict[int, float]
    swaps: int  # in all rounds
    trials: int  # evaluations of a candidate on live requests, in all rounds
    lost: int

    @property
    def first_exit_share(self) -> float | None:
        return self.share_by_layer[min(self.share_by_layer)] if self.share_by_layer else None


class Gain(msgspec.Struct, frozen=True):
    """HELIOS's gain over another system, as a factor: more throughput, or less time or energy."""

    throughput: Interval | None
    response: Interval | None
    response_p95: Interval | None
    energy: Interval | None
    batch: float
    memory_saved: float


class Outcome(msgspec.Struct, frozen=True):
    """Results of one load."""

    load: Load
    systems: dict[str, Figures]
    gains: dict[str, Gain]  # by the system that HELIOS is compared with


TRIALS = ("evaluate", "stay")  # kinds of decisions: begin and end an evaluation
Measure = Callable[[Summary], float | None]


def _tokens_per_s(summary: Summary) -> float | None:
    return summary.throughput.output_tokens_per_s


def _response_ms(summary: Summary) -> float | None:
    return summary.latencies.e2e.mean if summary.latencies.e2e else None


def _response_p95_ms(summary: Summary) -> float | None:
    return summary.latencies.e2e.p95 if summary.latencies.e2e else None


def joules_per_token(summary: Summary) -> float | None:
    """Joules per token over the whole run, for which joules are counted."""
    joules, tokens = summary.server.joules, summary.exits.total.num_tokens if summary.exits else 0
    return joules / tokens if joules and tokens else None


def outcomes_of(part: Part) -> list[Outcome]:
    """The outcome of each load."""
    return [_outcome(part, load) for load in part.loads]


def _outcome(part: Part, load: Load) -> Outcome:
    rounds = {system.name: part.runs_of(system.name, load) for system in part.systems}
    systems = {system.name: _figures(part, system.depth, rounds[system.name]) for system in part.systems}
    gains = {
        name: _gain([rounds[name], rounds[HELIOS]], systems[name], systems[HELIOS])
        for name in systems
        if name != HELIOS
    }
    return Outcome(load, systems, gains)


def _figures(part: Part, depth: int, rounds: Sequence[Measured]) -> Figures:
    summaries = [summary for _, summary in rounds]
    shares = share_by_layer(summaries)
    changes = [swap for summary in summaries for swap in summary.swaps if swap.outcome == "committed"]
    served = usual_depth(summaries) or depth
    budget = part.budget
    batch = budget.footprint.largest_batch(served, budget.memory_bytes, budget.request_tokens)
    return Figures(
        tokens_per_s=_median(_tokens_per_s, summaries),
        response_ms=_median(_response_ms, summaries),
        response_p95_ms=_median(_response_p95_ms, summaries),
        joules_per_token=_median(joules_per_token, summaries),
        most_running=max(
            (running for summary in summaries if (running := summary.server.most_running) is not None),
            default=None,
        ),
        largest_batch=batch,
        memory_bytes=budget.footprint.total_bytes(served, part.loads[0].in_flight, budget.request_tokens),
        share_by_layer=shares,
        swaps=len([swap for swap in changes if swap.kind not in TRIALS]),
        trials=len([swap for swap in changes if swap.kind == "evaluate"]),
        lost=sum(summary.integrity.lost for summary in summaries),
    )


def share_by_layer(summaries: Sequence[Summary]) -> dict[int, float]:
    """Share of all tokens of some runs by exit layer."""
    counts: dict[int, float] = {}
    for exits in (summary.exits for summary in summaries if summary.exits):
        for layer, share in exits.total.share_by_layer.items():
            counts[layer] = counts.get(layer, 0.0) + share * exits.total.num_tokens
    total = sum(counts.values())
    return {layer: count / total for layer, count in sorted(counts.items())}


def usual_depth(summaries: Sequence[Summary]) -> int | None:
    """The depth of most answers; None if answers do not tell."""
    counts: dict[int, int] = {}
    for version in (version for summary in summaries for version in summary.versions):
        if version.depth:
            counts[version.depth] = counts.get(version.depth, 0) + version.num_requests
    return max(counts, key=lambda depth: counts[depth], default=None)


def _median(measure: Measure, summaries: Sequence[Summary]) -> float | None:
    known = [value for summary in summaries if (value := measure(summary)) is not None]
    return statistics.median(known) if known else None


def _gain(rounds: Sequence[Sequence[Measured]], other: Figures, helios: Figures) -> Gain:
    theirs, ours = ([summary for _, summary in side] for side in rounds)
    return Gain(
        throughput=_ratio(_tokens_per_s, theirs, ours),
        response=_ratio(_response_ms, ours, theirs),
        response_p95=_ratio(_response_p95_ms, ours, theirs),
        energy=_ratio(joules_per_token, ours, theirs),
        batch=helios.largest_batch / other.largest_batch,
        memory_saved=1 - helios.memory_bytes / other.memory_bytes,
    )


def _ratio(measure: Measure, below: Sequence[Summary], above: Sequence[Summary]) -> Interval | None:
    """The ratio `above` / `below`, paired by rounds."""
    pairs = [(measure(x), measure(y)) for x, y in zip(below, above, strict=True)]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    return paired_ratio([x for x, _ in known], [y for _, y in known])
