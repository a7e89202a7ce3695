from itertools import islice
from pathlib import Path

import pytest

from loadgen.cli.units import BadQuantity
from loadgen.load.options import LoadOptions, ServeOptions
from loadgen.load.plan import plan_of, settings_of
from loadgen.traffic.filler import Filler


def test_without_a_word_it_is_eight_streams_for_half_a_minute() -> None:
    plan = plan_of(LoadOptions())
    pace = plan.pace()
    assert (pace.concurrency, pace.times, pace.duration_s) == (8, None, 30)
    groups = {plan.workload(Filler()).draw(number, 0.0).group for number in range(100)}
    assert groups == {"chat", "story", "code", "extract"}
    assert not plan.ignores_eos


def test_a_number_of_requests_is_what_ends_a_run() -> None:
    pace = plan_of(LoadOptions(requests=50)).pace()
    assert (pace.num_requests, pace.duration_s) == (50, float("inf"))


def test_a_rate_makes_an_open_loop_without_a_cap() -> None:
    pace = plan_of(LoadOptions(rate="5", spacing="constant", duration="2s")).pace()
    assert pace.concurrency is None
    assert pace.times is not None
    assert list(pace.times) == pytest.approx([0.2 * step for step in range(10)])


def test_a_trace_gives_times_and_lengths_and_may_be_played_faster(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp": 0, "input_length": 20, "output_length": 5}\n'
        '{"timestamp": 4000, "input_length": 30, "output_length": 6}\n'
    )
    plan = plan_of(LoadOptions(trace=str(path), trace_speed=2.0))
    pace = plan.pace()
    assert pace.times is not None
    assert list(pace.times) == [0, 2]
    assert plan.ignores_eos
    assert len(plan.workload(Filler()).draw(1, 0.0).turns[0].split()) == 30
    closed = plan_of(LoadOptions(trace=str(path), concurrency=3)).pace()
    assert (closed.times, closed.concurrency) == (None, 3)


def test_random_prompts_must_be_answered_in_full_length() -> None:
    assert plan_of(LoadOptions(input_tokens="64")).ignores_eos
    assert not plan_of(LoadOptions(input_tokens="64", eos="obey")).ignores_eos
    assert plan_of(LoadOptions(eos="ignore")).ignores_eos


def test_a_drift_in_requests_says_how_many() -> None:
    plan = plan_of(LoadOptions(drift="chat@5, code@7"))
    assert plan.num_requests == 12
    workload = plan.workload(Filler())
    assert [workload.draw(number, 0.0).group for number in (0, 4, 5, 11)] == ["chat", "chat", "code", "code"]


def test_a_round_of_another_seed_has_other_prompts() -> None:
    plan = plan_of(LoadOptions())

    def first(offset: int) -> list[tuple[str, ...]]:
        workload = plan.workload(Filler(), offset)
        return [workload.draw(number, 0.0).turns for number in range(20)]

    assert first(0) == first(0) != first(1)


def test_bursts_end_with_the_run() -> None:
    times = plan_of(LoadOptions(bursts="2/1s", duration="3s")).pace().times
    assert times is not None
    assert list(islice(times, 10)) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (LoadOptions(rate="fast"), "rate"),
        (LoadOptions(rate="2", bursts="3/1s"), "two different paces"),
        (LoadOptions(workload="poetry"), "no prompts of class poetry"),
        (LoadOptions(drift="chat@5s, poetry@5s"), "poetry"),
        (LoadOptions(drift="chat@5s", input_tokens="5"), "--drift needs prompts"),
        (LoadOptions(concurrency=0), "at least 1"),
        (LoadOptions(slo=("soon",)), "objective"),
        (LoadOptions(warmup="often"), "not a time"),
        (LoadOptions(output_tokens="many"), "tokens"),
        (LoadOptions(trace_speed=0.0), "--trace-speed"),
        (LoadOptions(cancel="2"), "share"),
        (LoadOptions(rate="1..3", requests=5), "--duration"),
    ],
)
def test_what_makes_no_sense_is_a_sentence_before_any_server_is_asked(
    options: LoadOptions, words: str
) -> None:
    with pytest.raises(BadQuantity, match=words):
        plan_of(options)


def test_settings_tell_what_was_asked_and_no_key() -> None:
    options = ServeOptions(url="http://x", rate="4", api_key="secret", admin_key="secret", slo=("ttft:1s",))
    assert settings_of(options) == {"rate": "4", "slo": ["ttft:1s"]}
