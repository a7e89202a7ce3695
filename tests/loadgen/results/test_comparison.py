import numpy as np

from loadgen.load.slo import SLO
from loadgen.load.trim import Trim
from loadgen.results.comparison import Better, Verdict, compare_answers, compare_rounds, verdict_of
from loadgen.results.stats import Interval
from loadgen.results.summary import Summary, summarise
from tests.loadgen.making import record, run_of


def rounds(itl_s: float, noise: float, seed: int, count: int = 5) -> list[Summary]:
    """Rounds of a server with some time between tokens, disturbed from round to round."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        gap = itl_s * float(rng.lognormal(0, noise))
        records = [record(at * 0.1, [at * 0.1 + 0.1 + gap * k for k in range(10)]) for at in range(60)]
        found.append(summarise(run_of(records), SLO(), Trim()))
    return found


def by_name(a: list[Summary], b: list[Summary]) -> dict[str, Verdict]:
    return {ratio.measure: ratio.verdict for ratio in compare_rounds(a, b)}


def test_a_clear_difference_gets_its_verdict() -> None:
    found = by_name(rounds(0.02, 0.02, 1), rounds(0.01, 0.02, 2))
    assert found["ITL p50"] is Verdict.BETTER
    assert by_name(rounds(0.01, 0.02, 1), rounds(0.02, 0.02, 2))["ITL p50"] is Verdict.WORSE


def test_noise_larger_than_the_difference_leaves_it_open() -> None:
    assert by_name(rounds(0.02, 0.4, 1), rounds(0.019, 0.4, 2))["ITL p50"] is Verdict.OPEN


def test_one_round_never_has_a_verdict() -> None:
    found = by_name(rounds(0.02, 0.0, 1, count=1), rounds(0.01, 0.0, 2, count=1))
    assert set(found.values()) == {Verdict.OPEN}


def test_which_side_is_better_depends_on_the_measure() -> None:
    rises = Interval(1.2, 1.1, 1.3)
    assert verdict_of(rises, Better.HIGHER) is Verdict.BETTER
    assert verdict_of(rises, Better.LOWER) is Verdict.WORSE
    assert verdict_of(Interval(1.2, 0.9, 1.5), Better.LOWER) is Verdict.OPEN


def test_equal_answers_are_counted_and_partings_shown() -> None:
    found = compare_answers(["p", "q", "r"], ["same", "one two", "x"], [" same", "one too", "x y"])
    assert (found.num_equal, found.num_prompts) == (1, 3)
    assert "at character 5" in found.differences[0]
    assert "at character 1" in found.differences[1]
