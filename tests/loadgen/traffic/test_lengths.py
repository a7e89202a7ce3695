import random

import numpy as np
import pytest

from loadgen.cli.units import BadQuantity
from loadgen.traffic.lengths import Lengths


def drawn(text: str, count: int = 5000) -> np.ndarray:
    lengths, source = Lengths.parse(text), random.Random(3)
    return np.array([lengths.draw(source) for _ in range(count)])


def test_a_number_is_itself() -> None:
    assert set(drawn("128", 20)) == {128}


def test_uniform_covers_its_range_evenly() -> None:
    found = drawn("uniform:10:19", 20_000)
    assert (found.min(), found.max()) == (10, 19)
    assert np.bincount(found - 10) / found.size == pytest.approx(np.full(10, 0.1), abs=0.01)


def test_normal_has_its_mean_and_spread_and_no_length_below_one() -> None:
    found = drawn("normal:200:40")
    assert (found.mean(), found.std()) == (pytest.approx(200, rel=0.02), pytest.approx(40, rel=0.05))
    assert drawn("normal:2:5").min() == 1


def test_lognormal_is_given_by_its_median() -> None:
    found = drawn("lognormal:150:0.8")
    assert np.median(found) == pytest.approx(150, rel=0.05)
    assert np.log(found).std() == pytest.approx(0.8, rel=0.05)


def test_choice_draws_from_its_values() -> None:
    assert set(drawn("choice:64,128,256")) == {64, 128, 256}


@pytest.mark.parametrize("text", ["", "-5", "0", "uniform:5", "uniform:a:b", "choice:", "zipf:3", "12:3"])
def test_what_is_no_length_is_a_sentence(text: str) -> None:
    with pytest.raises(BadQuantity):
        Lengths.parse(text)


def test_a_backward_range_is_a_sentence() -> None:
    with pytest.raises(BadQuantity, match="uniform"):
        Lengths.parse("uniform:20:10")
