import numpy as np
import pytest

from loadgen.results.stats import Confidence, describe, paired_ratio, percentile


def test_percentiles_of_a_known_distribution() -> None:
    sample = np.random.default_rng(1).exponential(100.0, 200_000)
    found = describe(sample)
    assert found is not None
    assert found.mean == pytest.approx(100, rel=0.01)
    for value, share in ((found.p50, 0.5), (found.p90, 0.9), (found.p95, 0.95), (found.p99, 0.99)):
        assert value == pytest.approx(-100 * np.log(1 - share), rel=0.02)
    assert found.p999 == pytest.approx(-100 * np.log(0.001), rel=0.05)


def test_percentiles_of_a_uniform_grid_are_exact() -> None:
    found = describe(np.arange(1001.0))
    assert found is not None
    assert (found.p50, found.p90, found.p99, found.p999) == (500, 900, 990, 999)
    assert (found.min, found.max, found.count) == (0, 1000, 1001)


@pytest.mark.parametrize(("count", "known"), [(19, False), (20, True)])
def test_a_percentile_beyond_the_sample_is_not_told(count: int, known: bool) -> None:
    assert (percentile(np.arange(float(count)), 0.95) is not None) == known


def test_an_empty_sample_is_no_distribution() -> None:
    assert describe([]) is None
    assert percentile([], 0.5) is None


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 12.706), (4, 2.776), (30, 2.042), (60, 2.000), (120, 1.980)]
)
def test_student_s_t_has_its_known_points(degrees: int, value: float) -> None:
    assert Confidence.P95.t(degrees) == pytest.approx(value, abs=5e-4)


def test_a_surer_interval_is_wider() -> None:
    assert Confidence.P99.t(4) == pytest.approx(4.604, abs=5e-4)
    assert Confidence.P99.t(60) == pytest.approx(2.660, abs=1e-3)


@pytest.mark.parametrize(("confidence", "share"), [(Confidence.P95, 0.95), (Confidence.P99, 0.99)])
def test_the_interval_of_a_paired_ratio_covers_the_truth_as_often_as_it_says(
    confidence: Confidence, share: float
) -> None:
    """Rounds share a disturbance far larger than the difference; pairing takes it out."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(2000):
        disturbance = rng.lognormal(0, 0.5, 5)
        a = disturbance * rng.lognormal(0, 0.05, 5)
        b = 1.2 * disturbance * rng.lognormal(0, 0.05, 5)
        found = paired_ratio(a.tolist(), b.tolist(), confidence)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 1.2 <= found.high
    assert covered / 2000 == pytest.approx(share, abs=0.015)


def test_one_pair_allows_no_interval() -> None:
    found = paired_ratio([2.0], [3.0])
    assert found is not None
    assert found.estimate == pytest.approx(1.5)
    assert found.low is None
    assert not found.excludes(1.0)
    assert paired_ratio([], []) is None
    assert paired_ratio([0.0], [1.0]) is None
