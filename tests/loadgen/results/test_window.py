from loadgen.load.trim import Trim
from loadgen.results.window import measured_records, measured_window
from tests.loadgen.making import record, run_of


def test_warm_up_and_cool_down_are_cut_off_the_time_of_starts() -> None:
    run = run_of([record(at, [at + 0.5, at + 30]) for at in range(101)])
    window = measured_window(run, Trim("10%", "5s"))
    assert (window.start_s, window.end_s) == (10, 95)
    assert len(measured_records(run, window)) == 86
    assert "warm-up 10%" in window.rule


def test_a_closed_loop_is_not_measured_before_its_first_answer_ended() -> None:
    run = run_of([record(at / 2, [at / 2 + 1, at / 2 + 20]) for at in range(200)], is_open_loop=False)
    assert measured_window(run, Trim("0%")).start_s == 20


def test_streams_in_lockstep_are_not_measured_over_the_moment_between_two_answers() -> None:
    rounds = [[record(at, [at + 1.0, at + 3.0]) for _ in range(32)] for at in (0.0, 3.01)]
    window = measured_window(run_of([*rounds[0], *rounds[1]], is_open_loop=False), Trim())
    assert (window.start_s, window.end_s) == (0, 6.01)


def test_a_short_run_is_measured_whole_and_that_is_said() -> None:
    run = run_of([record(0.0, [0.5, 1.0]) for _ in range(64)], is_open_loop=False)
    window = measured_window(run, Trim())
    assert (window.start_s, window.end_s) == (0, 1.0)
    assert "too short" in window.rule
