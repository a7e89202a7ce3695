"""Windows that are added say what one over all would have said."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.cost import CostSums, StepSample
from telemetry.window import Answers, ClassUse, Record, Window
from tests.telemetry.windows import by_candidate, merged

few = st.integers(0, 50)
# Sums of these are exact in floating point, so that equal means equal.
exact = st.integers(0, 4000).map(lambda number: number / 8)


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    """What may happen in a moment."""
    return {
        "at": draw(exact),
        "step": (draw(few), draw(few), draw(few), draw(exact)),
        "exits": draw(st.dictionaries(st.integers(1, 4), few, max_size=3)),
        "confidence": draw(exact),
        "times": draw(st.lists(st.floats(0.1, 1e4), max_size=5)),
        "answer": (draw(few), draw(few), draw(exact)),
        "class": draw(st.sampled_from(["chat", "code", "maths"])),
        "blocks": (draw(few), draw(few)),
        "joules": draw(exact),
    }


def note(window: Window, event: dict[str, Any]) -> None:
    """Enter it as a recorder would."""
    depth, tokens, others, ms = event["step"]
    window.start, window.end = min(window.start, event["at"]), max(window.end, event["at"])
    window.num_steps += 1
    window.step_ms += ms
    window.computed_tokens += tokens
    window.cost.add(StepSample(depth, tokens, tokens * depth + others, ms))
    for layer, count in event["exits"].items():
        window.tokens_by_exit[layer] = window.tokens_by_exit.get(layer, 0) + count
    window.confidence_sum += event["confidence"]
    window.joules += event["joules"]
    window.most_blocks = max(window.most_blocks, event["blocks"][0])
    fewest, free = window.fewest_free_blocks, event["blocks"][1]
    window.fewest_free_blocks = free if fewest is None else min(fewest, free)
    for time in event["times"]:
        window.itl_ms.add(time)
        window.ttft_ms.add(2 * time)
    window.add_answer(event["class"], event["answer"][0], event["answer"][1], -event["answer"][2], 7)
    window.classes.setdefault(event["class"], ClassUse()).merge(ClassUse(1, tokens, tokens * depth))


def window_of(events: list[dict[str, Any]]) -> Window:
    window = Window()
    for event in events:
        note(window, event)
    return window


@given(st.lists(st.lists(events(), max_size=4), max_size=4))
def test_windows_merged_are_the_window_of_the_whole(parts: list[list[dict[str, Any]]]) -> None:
    whole = window_of([event for part in parts for event in part])
    assert merged(map(window_of, parts)) == whole
    assert merged(reversed(list(map(window_of, parts)))) == whole
    assert merged(map(_through_redis, map(window_of, parts))) == whole


def _through_redis(window: Window) -> Window:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(window), type=Window)


def test_merging_leaves_the_parts_alone() -> None:
    part = Window(start=1, end=2, tokens_by_exit={3: 4}, classes={"chat": ClassUse(1, 2, 3)})
    before = _through_redis(part)
    merged([part, part])
    assert part == before


def test_of_an_empty_window_nothing_is_known() -> None:
    empty = Window()
    for value in (empty.throughput, empty.mean_confidence, empty.joules_per_token):
        assert value is None
    assert (empty.tokens, empty.breach_rate) == (0, 0.0)
    assert (empty.answers.perplexity, empty.answers.bits_per_byte) == (None, None)
    assert ClassUse().mean_exit_layer is None


def test_what_is_divided_is_divided_when_asked() -> None:
    window = Window(
        num_steps=4, step_ms=1500.0, idle_ms=500.0, batched=12, tokens_by_exit={3: 30, 30: 10},
        confidence_sum=9.0, num_confident=10, breaches=4, joules=20.0, metered_tokens=40,
        classes={"chat": ClassUse(3, 30, 90), "code": ClassUse(1, 10, 300)},
    )  # fmt: skip
    assert window.throughput == 20.0
    assert window.mean_confidence == 0.9
    assert window.breach_rate == 0.1
    assert window.joules_per_token == 0.5
    assert window.classes["code"].mean_exit_layer == 30


def test_perplexity_and_bits_per_byte() -> None:
    answers = Answers()
    answers.add(tokens=10, agreeing=9, logprob=-10 * math.log(4), num_bytes=40)
    assert answers.perplexity == pytest.approx(4.0)
    assert answers.bits_per_byte == pytest.approx(0.5)
    assert (answers.num_answers, answers.agreeing_by_tokens) == (1, 90)


def record(candidate: str, requests: int, end: float, shard: int = 0) -> Record:
    return Record(shard, candidate, 30, Window(start=end - 1, end=end, requests=requests))


def test_shards_are_added_by_candidate() -> None:
    records = [record("poet", 1, 1), record("poet", 2, 2, shard=1), record("bard", 4, 2)]
    found = by_candidate(records)
    assert {key: window.requests for key, window in found.items()} == {("poet", 30): 3, ("bard", 30): 4}
    assert records[0].window.requests == 1


def test_sums_of_costs_are_exact_whoever_adds_them() -> None:
    first, second = CostSums(), CostSums()
    first.add(StepSample(3, 2, 6, 1.5))
    second.add(StepSample(5, 1, 5, 2.5))
    first.merge(second)
    assert first.num_steps == 2
    assert first.answers == [4.0, 1.5 * 3 + 2.5 * 5, 1.5 * 2 + 2.5, 1.5 * 6 + 2.5 * 5]
