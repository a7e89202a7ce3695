from itertools import islice

import numpy as np
import pytest

from loadgen.cli.units import BadQuantity
from loadgen.traffic.arrivals import Bursts, Piece, Spacing, arrival_times, parse_rate

FOREVER = float("inf")


def gaps_of(spacing: str, rate: str = "50", count: int = 20_000) -> np.ndarray:
    times = list(islice(arrival_times(parse_rate(rate, FOREVER), Spacing.parse(spacing), 7), count))
    return np.diff(times)


@pytest.mark.parametrize(("spacing", "variation"), [("poisson", 1.0), ("gamma:4", 0.5), ("gamma:0.25", 2.0)])
def test_gaps_have_the_mean_of_the_rate_and_the_variation_of_their_kind(
    spacing: str, variation: float
) -> None:
    gaps = gaps_of(spacing)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.05)


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.sort(gaps_of("poisson"))
    expected = 1 - np.exp(-gaps * 50)
    assert np.abs(np.arange(1, gaps.size + 1) / gaps.size - expected).max() < 1.63 / np.sqrt(gaps.size)


def test_constant_spacing_is_a_metronome_from_the_start() -> None:
    times = list(arrival_times(parse_rate("4", 2.0), Spacing.parse("constant"), 0))
    assert times == pytest.approx(np.arange(8) / 4)


def test_a_ramp_has_its_rate_at_every_point() -> None:
    times = np.array(list(arrival_times(parse_rate("10..90", 40.0), Spacing.parse("constant"), 0)))
    assert times.size == pytest.approx(40 * 50, abs=2)
    for middle in (5, 20, 35):
        here = ((times >= middle - 1) & (times < middle + 1)).sum() / 2
        assert here == pytest.approx(10 + 80 * middle / 40, abs=1.5)


def test_steps_have_their_rates_one_after_another() -> None:
    times = np.array(list(arrival_times(parse_rate("2,8,4", 30.0), Spacing.parse("constant"), 0)))
    counts = [((times >= low) & (times < low + 10)).sum() for low in (0, 10, 20)]
    assert counts == [pytest.approx(20, abs=1), pytest.approx(80, abs=1), pytest.approx(40, abs=1)]
    assert (np.diff(times) > 0).all()


def test_the_same_seed_gives_the_same_times() -> None:
    pieces = parse_rate("20", 5.0)
    first, again, other = (list(arrival_times(pieces, Spacing(), seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_a_falling_ramp_is_inverted_exactly() -> None:
    piece = Piece(10.0, 9.0, 1.0)
    for count in (0.0, 10.0, 30.0, 50.0):
        at = piece.time_of(count)
        assert 9 * at - 0.4 * at**2 == pytest.approx(count, abs=1e-9)


def test_bursts_come_together() -> None:
    assert list(Bursts.parse("3/2s").times(5.0)) == [0, 0, 0, 2, 2, 2, 4, 4, 4]


@pytest.mark.parametrize("text", ["0", "-1", "x", "2..", "1,,2", "inf", "nan"])
def test_a_rate_that_is_none_is_a_sentence(text: str) -> None:
    with pytest.raises(BadQuantity, match="rate"):
        parse_rate(text, 10.0)


def test_a_ramp_needs_an_end() -> None:
    with pytest.raises(BadQuantity, match="--duration"):
        parse_rate("1..5", FOREVER)


@pytest.mark.parametrize("text", ["sometimes", "gamma", "gamma:0", ""])
def test_a_spacing_that_is_none_is_a_sentence(text: str) -> None:
    with pytest.raises(BadQuantity):
        Spacing.parse(text)


@pytest.mark.parametrize("text", ["32", "x/2s", "0/2s", "3/0s", "3/"])
def test_bursts_that_are_none_are_a_sentence(text: str) -> None:
    with pytest.raises(BadQuantity):
        Bursts.parse(text)
