"""The policy in a small world with noise: it finds what is best, holds to it, follows when things shift."""

import pytest

from router.catalog.repository import Choice, Loop
from router.policy.decision import DecisionKind
from tests.router.policy_world import paper_world


@pytest.mark.parametrize("seed", range(3))
def test_ten_thousand_requests_of_noise_make_one_swap_at_most(seed):
    world = paper_world(seed=seed, noise=0.2)
    world.serve(10_000)
    assert len(world.changes) <= 1
    assert world.policy_state.serving.candidate == "chat"


@pytest.mark.parametrize("seed", range(3))
def test_a_mixture_that_does_not_change_makes_one_swap_at_most(seed):
    world = paper_world(seed=seed)
    world.serve(3000, lambda index: "code" if world.random.random() < 0.5 else "chat")
    assert len(world.changes) <= 1
    assert world.policy_state.serving.depth == 30


@pytest.mark.parametrize("seed", range(5))
def test_the_right_choice_serves_within_300_requests_of_a_shift(seed):
    world = paper_world(seed=seed)
    for kind in ("chat", "code", "chat", "code"):
        world.serve(300, kind)
        assert world.policy_state.serving.candidate == kind
        assert world.policy_state.serving.depth in (15, 20)
        world.serve(300, kind)


def test_breaches_are_answered_within_ten_requests_of_a_shift():
    world = paper_world()
    world.serve(600)
    world.serve(10, "code")
    assert world.policy_state.serving != Choice("chat", 15)
    at, decision = world.changes[-1]
    assert 600 < at <= 610
    assert "under threshold" in decision.why


def test_what_history_knows_serves_again_without_trials():
    world = paper_world()
    world.serve(600)
    world.serve(400, "code")
    num_before = len(world.diary)
    world.serve(300)
    later = [decision for _, decision in world.diary[num_before:]]
    assert world.policy_state.serving.candidate == "chat"
    assert not any(
        decision.kind is DecisionKind.EVALUATE and decision.choice.candidate == "chat" for decision in later
    )


def test_at_a_floor_that_nothing_reaches_the_model_stays_whole():
    world = paper_world(floor=0.95)
    world.serve(500)
    assert not world.changes
    assert world.policy_state.serving == Choice("full", 30)
    reasons = {str(ranked.choice): ranked.why_not for ranked in world.diary[0][1].considered}
    assert "only 0.85 is proven" in reasons["chat at 20 layers"]


def test_exits_that_agree_less_than_was_proven_are_revoked_by_live_answers():
    world = paper_world(floor=0.7)
    worse = {"chat": {15: 0.5, 20: 0.9}}
    truth = world.truths["chat"]
    world.truths["chat"] = type(truth)(truth.sure, worse)
    world.serve(600)
    assert any("live answers agree too little" in decision.why for _, decision in world.changes)
    assert world.policy_state.serving == Choice("chat", 20)


def test_what_cannot_be_loaded_is_left_alone():
    world = paper_world()
    world.failing = {Choice("chat", depth): "the file is broken" for depth in (10, 15, 20)}
    world.serve(600)
    assert world.policy_state.serving.depth == 30
    assert (
        sum(
            decision.choice == Choice("chat", 15)
            for _, decision in world.diary
            if decision.kind is DecisionKind.EVALUATE
        )
        == 1
    )


def test_the_time_spent_on_trials_keeps_to_its_budget():
    world = paper_world(loop=Loop(evaluation_budget=0.0))
    world.serve(600)
    assert not any(decision.kind is DecisionKind.EVALUATE for _, decision in world.diary)


def test_what_is_pinned_stays_through_a_shift():
    world = paper_world()
    world.policy_state.watch.pinned = "mona"
    world.serve(300, "chat")
    world.serve(300, "code")
    assert not world.changes
