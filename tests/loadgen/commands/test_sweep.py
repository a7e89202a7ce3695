import pytest

from loadgen.commands.sweep import Point, next_concurrency, next_rate


def point(level: float, is_sustained: bool = True) -> Point:
    return Point(level, is_sustained, "", level, level, None, None, None, None, None)


def levels(limit: float, first: float = 1.0) -> list[float]:
    """The rates tried on a server that sustains up to `limit`."""
    points: list[Point] = []
    while (level := next_rate(points, first)) is not None:
        points.append(point(level, level <= limit))
    return [found.level for found in points]


def test_concurrency_doubles_until_it_no_longer_pays() -> None:
    assert next_concurrency([], 1.0) == 1
    assert next_concurrency([point(1), point(2)], 1.0) == 4
    assert next_concurrency([point(1), point(2, False)], 1.0) is None


@pytest.mark.parametrize("limit", [0.7, 3.0, 10.0, 100.0, 777.0])
def test_a_rate_is_closed_in_upon_and_the_sweep_ends(limit: float) -> None:
    tried = levels(limit)
    best = max(level for level in tried if level <= limit)
    assert len(tried) <= 16
    assert limit / best < 1.2


def test_a_server_that_bears_nothing_ends_the_sweep() -> None:
    assert len(levels(0.0)) <= 8
