"""Agreement: shares by exit layer, intervals that hold what they say, perplexity."""

import math
import random

import pytest

from shard.quality.agreement import Agreement, Report, wilson


def test_tokens_are_counted_by_the_layer_they_left_at() -> None:
    books = Agreement()
    books.add([(8, True), (8, False), (32, True)], [-1.0, -3.0, -2.0])
    books.add([(32, True)], [-2.0])
    report = books.report()
    assert report.overall is not None
    assert (report.sequences, report.overall.tokens, report.overall.agreeing) == (2, 4, 3)
    assert [(layer, share.tokens, share.agreeing) for layer, share in report.by_exit.items()] == [
        (8, 2, 1),
        (32, 2, 2),
    ]
    assert report.perplexity == pytest.approx(math.exp(2.0))


def test_without_answers_nothing_is_known() -> None:
    books = Agreement()
    assert books.report() == Report(0, None, {}, None)
    books.add([], [])
    assert books.report() == Report(0, None, {}, None)


def test_impossible_tokens_leave_a_number() -> None:
    books = Agreement()
    books.add([(1, False)], [-1e9])
    assert math.isfinite(books.report().perplexity or 0.0)


def test_wilson_is_the_published_interval() -> None:
    assert wilson(0.9, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert wilson(1.0, 50)[1] == 1.0
    assert wilson(0.0, 50)[0] == 0.0


def test_answers_that_differ_widen_the_interval() -> None:
    alike, unlike = Agreement(), Agreement()
    for i in range(20):
        alike.add([(8, True)] * 5 + [(8, False)] * 5, [])
        unlike.add([(8, i % 2 == 0)] * 10, [])
    narrow, wide = alike.report().overall, unlike.report().overall
    assert narrow is not None
    assert wide is not None
    assert narrow.agreement == wide.agreement == 0.5
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_nineteen_intervals_in_twenty_hold_the_truth_though_tokens_of_an_answer_hang_together() -> None:
    draw = random.Random(1)
    hits = 0
    for _ in range(300):
        books = Agreement()
        for _ in range(60):
            chance = draw.choice([0.6, 1.0])  # 0.8 on the whole
            books.add([(8, draw.random() < chance) for _ in range(30)], [])
        share = books.report().overall
        assert share is not None
        hits += share.low <= 0.8 <= share.high
    assert hits / 300 == pytest.approx(0.95, abs=0.04)
