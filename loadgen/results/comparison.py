"""Compares two servers under the same load by rounds: ratios with intervals, and verdicts.

Rounds are paired, because noise affects neighbouring rounds alike. Intervals are shown at 95%, but a verdict
needs 99%: among a dozen measures, one would otherwise often differ by chance.
"""

import enum
from collections.abc import Callable, Sequence

import msgspec

from loadgen.results.stats import Confidence, Interval, paired_ratio
from loadgen.results.summary import Summary


class Better(enum.StrEnum):
    HIGHER = "higher"
    LOWER = "lower"


class Verdict(enum.StrEnum):
    BETTER = "better"
    WORSE = "worse"
    OPEN = "open"  # the interval contains 1


class Measure(msgspec.Struct, frozen=True):
    """A measure of both servers."""

    name: str
    better: Better
    unit: str
    value: Callable[[Summary], float | None]


def _latency(field: str, point: str) -> Callable[[Summary], float | None]:
    return lambda summary: getattr(getattr(summary.latencies, field), point, None)


MEASURES = (
    Measure("output tokens/s", Better.HIGHER, "", lambda s: s.throughput.output_tokens_per_s),
    Measure("requests/s", Better.HIGHER, "", lambda s: s.throughput.requests_per_s),
    Measure(
        "good requests/s",
        Better.HIGHER,
        "",
        lambda s: s.throughput.good_per_s if s.slo.are_stated else None,
    ),
    Measure("TTFT mean", Better.LOWER, "ms", _latency("ttft", "mean")),
    Measure("TTFT p50", Better.LOWER, "ms", _latency("ttft", "p50")),
    Measure("TTFT p95", Better.LOWER, "ms", _latency("ttft", "p95")),
    Measure("ITL p50", Better.LOWER, "ms", _latency("itl", "p50")),
    Measure("ITL p95", Better.LOWER, "ms", _latency("itl", "p95")),
    Measure("ITL p99", Better.LOWER, "ms", _latency("itl", "p99")),
    Measure("TPOT mean", Better.LOWER, "ms", _latency("tpot", "mean")),
    Measure("E2E mean", Better.LOWER, "ms", _latency("e2e", "mean")),
    Measure("E2E p95", Better.LOWER, "ms", _latency("e2e", "p95")),
)


class Ratio(msgspec.Struct, frozen=True):
    """One measure over all rounds: means of A and B, and the ratio B/A with its 95% interval."""

    measure: str
    better: Better
    unit: str
    a: float
    b: float
    ratio: Interval
    verdict: Verdict
    rounds: int


def compare_rounds(a: Sequence[Summary], b: Sequence[Summary]) -> list[Ratio]:
    """Every measure that both servers have in each round."""
    found = []
    for measure in MEASURES:
        pairs = [(measure.value(x), measure.value(y)) for x, y in zip(a, b, strict=True)]
        known = [(x, y) for x, y in pairs if x is not None and y is not None and x > 0 and y > 0]
        sides = [x for x, _ in known], [y for _, y in known]
        ratio, sure = paired_ratio(*sides), paired_ratio(*sides, Confidence.P99)
        if ratio is None or sure is None:
            continue
        mean_a, mean_b = (sum(values) / len(known) for values in zip(*known, strict=True))
        verdict = verdict_of(sure, measure.better)
        found.append(
            Ratio(measure.name, measure.better, measure.unit, mean_a, mean_b, ratio, verdict, len(known))
        )
    return found


def verdict_of(ratio: Interval, better: Better) -> Verdict:
    """The verdict about B; open unless the 99% interval excludes 1."""
    if not ratio.excludes(1.0):
        return Verdict.OPEN
    return Verdict.BETTER if (ratio.estimate > 1) == (better is Better.HIGHER) else Verdict.WORSE


class Answers(msgspec.Struct, frozen=True):
    """Greedy answers of both servers to the same prompts."""

    num_prompts: int
    num_equal: int
    differences: list[str]  # where the first few diverge

    @property
    def share(self) -> float:
        return self.num_equal / self.num_prompts if self.num_prompts else 0.0


def compare_answers(prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> Answers:
    """Compare answers, ignoring blanks at the ends, which dialects treat differently."""
    triples = [(p, x.strip(), y.strip()) for p, x, y in zip(prompts, a, b, strict=True)]
    unequal = [_parting(*triple) for triple in triples if triple[1] != triple[2]]
    return Answers(len(triples), len(triples) - len(unequal), unequal[:5])


def _parting(prompt: str, a: str, b: str) -> str:
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    begin = max(0, at - 20)
    return f"{prompt[:40]!r}: at character {at}, {a[begin : at + 20]!r} against {b[begin : at + 20]!r}"
