"""Exits whose heads cost more than they save are asked rarely, and found again when that changes."""

from shard.exits.ask_gate import LOOK_AGAIN_STEPS, ExitSkipper


def run(skipper: ExitSkipper, steps: int, passes: float, ask_ms: float, behind_ms: float) -> int:
    """How often the first exit was asked."""
    asked = 0
    for _ in range(steps):
        skipper.note_segment(1, behind_ms)
        if skipper.asks(0):
            asked += 1
            skipper.note_asked(0, 10, round(10 * passes), ask_ms)
    return asked


def test_an_exit_that_saves_more_than_it_costs_is_always_asked():
    assert run(ExitSkipper(1, True), 500, passes=0.5, ask_ms=2.0, behind_ms=10.0) == 500


def test_an_exit_that_costs_more_than_it_saves_is_asked_now_and_then():
    skipper = ExitSkipper(1, True)
    run(skipper, 500, passes=0.1, ask_ms=2.0, behind_ms=10.0)
    assert run(skipper, 10 * LOOK_AGAIN_STEPS, passes=0.1, ask_ms=2.0, behind_ms=10.0) == 10


def test_an_exit_that_begins_to_pay_is_found():
    skipper = ExitSkipper(1, True)
    run(skipper, 500, passes=0.0, ask_ms=2.0, behind_ms=10.0)
    run(skipper, 10 * LOOK_AGAIN_STEPS, passes=0.9, ask_ms=2.0, behind_ms=10.0)
    assert run(skipper, 100, passes=0.9, ask_ms=2.0, behind_ms=10.0) == 100


def test_a_gate_that_is_off_asks_every_time():
    assert run(ExitSkipper(1, False), 300, passes=0.0, ask_ms=99.0, behind_ms=1.0) == 300


def test_a_row_that_leaves_needs_no_head_at_the_end():
    """Half of the rows leave: 4 ms of layers do not pay 6 ms of asking, with 10 ms of head they do."""
    skipper = ExitSkipper(1, True)
    assert run(skipper, 500, passes=0.5, ask_ms=6.0, behind_ms=4.0) < 200
    skipper = ExitSkipper(1, True)
    skipper.note_head(10.0)
    assert run(skipper, 500, passes=0.5, ask_ms=6.0, behind_ms=4.0) == 500
