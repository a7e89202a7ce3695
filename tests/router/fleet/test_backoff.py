"""Pauses between starts grow while lives are short, and are forgotten after a long one."""

from router.fleet.backoff import Backoff


def test_pauses_double_up_to_a_bound() -> None:
    backoff = Backoff()
    pauses = [backoff.pause_s(1.0) for _ in range(12)]
    assert pauses[:5] == [0.0, 0.2, 0.4, 0.8, 1.6]
    assert pauses[-1] == 30.0


def test_a_long_life_is_followed_by_no_pause() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.pause_s(1.0)
    assert backoff.pause_s(100.0) == 0.0
    assert backoff.pause_s(1.0) == 0.2
