from typing import Any

import pytest

from loadgen.client.records import Flaw, Outcome, Record, Segment
from loadgen.results.integrity import integrity_of
from tests.loadgen.making import record

SEA = "the sea was calm that morning and the boats lay still in the harbour of the old town"
SKY = "a plane crossed the wide blue sky and left a white line that slowly came apart in the wind"


def said(prompt: str, text: str, **changes: Any) -> Record:
    return record(0.0, [0.1], prompt=prompt, pieces=[text], version="v1", **changes)


def test_whole_answers_are_whole() -> None:
    found = integrity_of([said("sea", SEA), said("sky", SKY), said("sea", SEA)])
    assert found.is_whole
    assert (found.num_repeated, found.num_unequal) == (1, 0)


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome.is_failure])
def test_an_answer_that_failed_is_lost(outcome: Outcome) -> None:
    assert integrity_of([record(outcome=outcome)]).lost == 1


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.CANCELLED])
def test_what_the_server_may_do_is_not_lost(outcome: Outcome) -> None:
    assert integrity_of([record(outcome=outcome)]).is_whole


def test_an_answer_that_never_ended_is_lost() -> None:
    assert integrity_of([record(outcome=Outcome.PENDING)]).lost == 1


@pytest.mark.parametrize(
    ("flaw", "kind"),
    [
        (Flaw.GAP, "lost"),
        (Flaw.COUNT_DIFFERS, "lost"),
        (Flaw.DUPLICATED, "duplicated"),
        (Flaw.AFTER_END, "duplicated"),
        (Flaw.MIXED, "mixed"),
        (Flaw.TEXT_DIFFERS, "mixed"),
    ],
)
def test_each_flaw_has_its_kind(flaw: Flaw, kind: str) -> None:
    found = integrity_of([record(flaws=[flaw], group="chat")])
    assert getattr(found, kind) == 1
    assert found.lost + found.duplicated + found.mixed == 1
    assert found.examples[0].startswith(f"{kind}: request 0 (chat)")


@pytest.mark.parametrize(("reason", "lost"), [("length", 1), ("eos_token", 0), ("stop", 0)])
def test_too_few_tokens_are_lost_where_the_length_is_said_to_have_ended_it(reason: str, lost: int) -> None:
    short = record(0.0, [0.1, 0.2], max_tokens=3, output_tokens=2, finish_reason=reason)
    assert integrity_of([short]).lost == lost


def test_an_answer_that_begins_as_another_one_s_is_mixed() -> None:
    assert integrity_of([said("sea", SEA), said("sky", SKY), said("sea", SKY)]).mixed == 1


def test_an_answer_that_goes_on_as_another_one_s_is_mixed() -> None:
    assert integrity_of([said("sea", SEA), said("sky", SKY), said("sea", SEA[:20] + SKY[20:])]).mixed == 1


def test_another_s_words_in_the_middle_of_an_answer_are_mixed() -> None:
    crossed = SEA[:20] + SKY[10:70] + SEA[20:]
    assert integrity_of([said("sea", SEA), said("sky", SKY), said("sea", crossed)]).mixed == 1


def test_words_of_the_prompt_are_nobody_else_s() -> None:
    asked = f"Say in other words: {SKY}"
    quoting = [said(asked, SEA), said("sky", SKY), said(asked, SEA[:20] + SKY[20:])]
    assert integrity_of(quoting).mixed == 0


def test_what_several_say_is_a_common_phrase() -> None:
    phrase = "If you have any further questions, please do not hesitate to ask me at any time."
    others = [said("sky", f"Blue. {phrase}"), said("sun", f"Yellow. {phrase}")]
    assert integrity_of([said("sea", SEA), *others, said("sea", SEA[:40] + phrase)]).mixed == 0


def test_an_answer_turned_aside_by_a_near_tie_is_unequal_but_its_own() -> None:
    aside = SEA[:30] + " and nobody was awake to see how the light came over the hills on the far side"
    found = integrity_of([said("sea", SEA), said("sky", SKY), said("sea", aside)])
    assert (found.mixed, found.num_unequal) == (0, 1)


@pytest.mark.parametrize(
    "loop", ["_python", " import argparse", " The sea is as blue as the sky, and the sky as the sea."]
)
def test_a_loop_that_two_answers_run_into_is_nobody_s(loop: str) -> None:
    answers = [said("sea", SEA), said("sky", f"Once: {loop * 9}"), said("sea", SEA[:30] + loop * 8)]
    assert integrity_of(answers).mixed == 0


def test_other_versions_may_answer_otherwise() -> None:
    small = [Segment("small", "v2", 10, 0)]
    found = integrity_of([said("sea", SEA), said("sea", SKY, segments=small)])
    assert (found.num_repeated, found.mixed) == (0, 0)
