"""The decision as a pure function: what it never does, whatever it sees; and what it does in plain cases."""

import copy

import msgspec
import pytest
from hypothesis import given, settings

from router.catalog.repository import Choice, Limits, Loop
from router.policy.decide import decide
from router.policy.decision import DecisionKind
from router.policy.eligibility import why_never
from router.policy.observation import Demand, Device, Evaluation, LoopCounters
from telemetry.history import Interval
from tests.router.policy.observations import (
    MIB,
    NOW_S,
    is_allowed,
    moments,
    observation_of,
    profile_of,
    row,
)

WHOLE, MIDDLE, SHALLOW = Choice("one", 24), Choice("one", 12), Choice("one", 6)


def test_before_it_is_time_nothing_changes():
    observation = observation_of(counters=LoopCounters(num_requests=149, reassessed_at=0))
    assert decide(observation).kind is DecisionKind.STAY


def test_a_cheaper_depth_is_tried_on_live_requests_first():
    decision = decide(observation_of(history=[row(WHOLE)]))
    assert (decision.kind, decision.choice) == (DecisionKind.EVALUATE, MIDDLE)


def test_what_history_knows_is_not_tried_again():
    decision = decide(observation_of(history=[row(WHOLE), row(MIDDLE)]))
    assert (decision.kind, decision.choice) == (DecisionKind.LIGHTEN, MIDDLE)
    assert decision.is_elective


@pytest.mark.parametrize(("cached_tokens", "changes"), [(0.0, True), (1_000.0, True), (1_000_000.0, False)])
def test_what_the_prefix_cache_loses_is_part_of_a_change(cached_tokens, changes):
    two = Choice("two", 24)
    candidates = (profile_of(depths=()), profile_of("two", depths=(), model="two"))
    history = [row(WHOLE), row(two, ms_a_layer=0.5, swap_ms=100.0, agreement=Interval(1.0, 1.0, 1.0, 100))]
    decision = decide(observation_of(*candidates, history=history, cached_tokens=cached_tokens))
    assert (decision.choice == two) is changes
    if not changes:
        assert "not win back the time of the swap" in decision.why


def test_fewer_layers_keep_the_prefix_cache():
    decision = decide(observation_of(history=[row(WHOLE), row(MIDDLE)], cached_tokens=1e6))
    assert (decision.kind, decision.choice) == (DecisionKind.LIGHTEN, MIDDLE)


def test_stale_history_is_tried_again():
    stale = row(MIDDLE, measured_at=int(NOW_S) - 3601)
    assert decide(observation_of(history=[row(WHOLE), stale])).kind is DecisionKind.EVALUATE


def test_what_cannot_change_the_choice_is_not_tried():
    small = profile_of("small", depths=(), model="small")
    large = msgspec.structs.replace(
        small, layer_bytes=100 * MIB, candidate=profile_of("large", model="large").candidate
    )
    observation = observation_of(
        small, large, history=[row(Choice("small", 24))], device=Device(20_000 * MIB)
    )
    assert decide(observation).kind is DecisionKind.STAY


def test_evaluation_ends_with_its_budget():
    spent = LoopCounters(num_requests=150, reassessed_at=0, elapsed_ms=60_000, evaluated_ms=1e9)
    assert decide(observation_of(history=[row(WHOLE)], counters=spent)).kind is not DecisionKind.EVALUATE


@pytest.mark.parametrize(("answered", "kind"), [(4, DecisionKind.EVALUATE), (5, DecisionKind.LIGHTEN)])
def test_a_trial_takes_so_many_requests(answered, kind):
    counters = LoopCounters(num_requests=160, reassessed_at=0, evaluation=Evaluation(MIDDLE, answered))
    decision = decide(observation_of(history=[row(WHOLE), row(MIDDLE)], counters=counters))
    assert (decision.kind, decision.choice) == (kind, MIDDLE)


def test_candidates_are_tried_one_after_the_other():
    counters = LoopCounters(evaluation=Evaluation(MIDDLE, 5, (SHALLOW,)))
    decision = decide(observation_of(counters=counters))
    assert (decision.kind, decision.choice, decision.waiting) == (DecisionKind.EVALUATE, SHALLOW, ())


def test_a_small_gain_does_not_make_a_swap():
    observation = observation_of(history=[row(WHOLE, 0.53), row(MIDDLE, 0.95)])
    decision = decide(observation)
    assert decision.kind is DecisionKind.STAY
    assert "too little less" in decision.why


def test_swaps_have_a_budget():
    often = LoopCounters(num_requests=900, reassessed_at=0, swapped_at=(100, 300, 500, 700))
    decision = decide(observation_of(history=[row(WHOLE), row(MIDDLE)], counters=often))
    assert decision.kind is DecisionKind.STAY
    assert "4 swaps" in decision.why


def test_what_is_not_proven_never_serves():
    unproven = profile_of(proven={})
    for history in ([row(WHOLE), row(SHALLOW), row(MIDDLE)], [row(WHOLE)]):
        decision = decide(observation_of(unproven, history=history))
        assert decision.kind is DecisionKind.STAY
        assert "nothing is proven" in decision.considered[-1].why_not


def test_live_answers_revoke_what_was_proven():
    bad = Interval(0.6, 0.55, 0.65, 30)
    observation = observation_of(
        serving=MIDDLE, history=[row(MIDDLE, agreement=bad)], counters=LoopCounters()
    )
    decision = decide(observation)
    assert (decision.kind, decision.choice) == (DecisionKind.DEEPEN, WHOLE)
    assert "live answers agree too little" in decision.why


def test_live_answers_cannot_prove():
    good = Interval(0.99, 0.98, 1.0, 1000)
    decision = decide(observation_of(history=[row(WHOLE), row(SHALLOW, agreement=good)]))
    assert decision.choice != SHALLOW


def test_other_prompts_revoke_nothing():
    bad = Interval(0.6, 0.55, 0.65, 30)
    observation = observation_of(
        history=[row(WHOLE), row(MIDDLE), row(MIDDLE, agreement=bad, prompts="code")]
    )
    assert decide(observation).choice == MIDDLE


def test_exits_made_for_other_prompts_are_left():
    observation = observation_of(
        profile_of(prompts=("chat",)),
        serving=MIDDLE,
        demand=Demand(64, 64, 4, {"chat": 0.5, "code": 0.5}),
        counters=LoopCounters(),
    )
    decision = decide(observation)
    assert (decision.kind, decision.choice) == (DecisionKind.DEEPEN, WHOLE)


def test_breaches_are_answered_by_the_cheaper_of_more_layers_and_another_model():
    first, two = profile_of(depths=(6, 12, 18), proven={12: 0.9, 18: 0.9}), profile_of("two", model="two")
    counters = LoopCounters(num_requests=10, reassessed_at=0, is_breached=True)
    deeper, other = row(Choice("one", 18)), row(Choice("two", 12))
    observation = observation_of(
        first, two, serving=MIDDLE, history=[row(MIDDLE), deeper, other], counters=counters
    )
    assert decide(observation).choice == Choice("two", 12)
    dear = row(Choice("two", 12), swap_ms=1e6)
    observation = observation_of(
        first, two, serving=MIDDLE, history=[row(MIDDLE), deeper, dear], counters=counters
    )
    assert decide(observation).choice == Choice("one", 18)


def test_what_is_pinned_stays_also_under_breaches():
    decision = decide(observation_of(serving=SHALLOW, counters=LoopCounters(pinned="mona", is_breached=True)))
    assert decision.kind is DecisionKind.STAY
    assert "pinned by mona" in decision.why


def test_what_could_not_be_loaded_is_not_chosen_again():
    observation = observation_of(history=[row(WHOLE), row(MIDDLE)], load_failures={MIDDLE: "no such file"})
    assert decide(observation).kind is DecisionKind.STAY


def test_by_shares_the_paper_takes_the_least_exit_with_three_quarters():
    profile = profile_of(depths=(6, 12, 18), proven={6: 0.9, 12: 0.9, 18: 0.9})
    unsure = {6: 2000, 12: 1200, 18: 800}  # of 4000 tokens
    history = [row(WHOLE), *(row(Choice("one", depth), breaches=count) for depth, count in unsure.items())]
    by_cost = decide(observation_of(profile, history=history))
    by_share = decide(observation_of(profile, history=history, loop=Loop(depth_by="share")))
    assert (by_cost.choice.depth, by_share.choice.depth) == (6, 18)


def test_one_mean_request_has_to_fit_in_memory():
    observation = observation_of(history=[row(WHOLE), row(MIDDLE)], limits=Limits(memory_bytes=100 * MIB))
    decision = decide(observation)
    assert decision.kind is DecisionKind.STAY
    assert "nothing in the repository may" in decision.why
    observation = observation_of(history=[row(WHOLE)], limits=Limits(memory_bytes=200 * MIB))
    assert decide(observation).choice == MIDDLE


def test_freed_memory_counts_where_it_makes_the_batch_larger():
    """At equal time a step, what leaves room for more sequences costs each of them less."""
    rows = [row(WHOLE, 0.5), row(MIDDLE, 0.8)]
    roomy = observation_of(history=rows, device=Device(20_000 * MIB))
    tight = observation_of(history=rows, device=Device(285 * MIB))
    assert decide(roomy).kind is DecisionKind.STAY
    assert decide(tight).choice == MIDDLE


def test_a_limit_on_time_between_tokens_rules_out():
    rows = [row(WHOLE, itl_p95_ms=50.0), row(MIDDLE, 1.9, itl_p95_ms=20.0)]
    assert decide(observation_of(history=rows)).kind is DecisionKind.STAY
    decision = decide(observation_of(history=rows, limits=Limits(p95_itl_ms=30)))
    assert decision.choice == MIDDLE
    assert "p95 of time between tokens is 50 ms" in decision.why


def test_energy_decides_where_it_is_the_objective():
    rows = [row(WHOLE, 1.0, joules_per_token=1.0), row(MIDDLE, 1.0, joules_per_token=2.0)]
    assert decide(observation_of(history=rows)).choice == MIDDLE
    assert decide(observation_of(history=rows, objective="energy")).kind is DecisionKind.STAY


# Whatever it sees


def _key(choice):
    return choice.candidate, choice.depth


@settings(max_examples=250, deadline=None)
@given(moments())
def test_nothing_is_chosen_that_may_not_serve(observation):
    """Never below the floor, never over memory: what is changed to, or tried, keeps every hard rule."""
    decision = decide(observation)
    if decision.kind is DecisionKind.STAY:
        return
    trial = observation.counters.evaluation
    is_next_in_line = trial is not None and decision.choice in trial.waiting
    if not is_next_in_line:
        assert is_allowed(observation, decision.choice)
        assert decision.choice not in observation.load_failures or decision.choice == observation.serving


@settings(max_examples=100, deadline=None)
@given(moments())
def test_the_same_input_gives_the_same_decision(observation):
    assert decide(observation) == decide(copy.deepcopy(observation))


@settings(max_examples=100, deadline=None)
@given(moments())
def test_what_may_not_serve_stays_only_where_nothing_may(observation):
    observation = msgspec.structs.replace(
        observation, counters=msgspec.structs.replace(observation.counters, evaluation=None)
    )
    if why_never(observation, observation.serving) and decide(observation).kind is DecisionKind.STAY:
        assert all(
            why_never(observation, choice)
            for profile in observation.profiles.values()
            for choice in profile.choices
        )


@settings(max_examples=100, deadline=None)
@given(moments())
def test_a_decision_carried_out_is_not_taken_back_on_the_same_evidence(observation):
    """Deciding again at once, with nothing new known, changes nothing more."""
    counters = msgspec.structs.replace(
        observation.counters, evaluation=None, is_breached=False, evaluated_ms=1e12
    )
    observation = msgspec.structs.replace(observation, counters=counters)
    first = decide(observation)
    if first.kind is DecisionKind.STAY:
        return
    after = msgspec.structs.replace(observation, serving=first.choice)
    if not why_never(after, first.choice):
        second = decide(after)
        assert second.choice == first.choice or not _is_back(second, observation)


def _is_back(decision, observation):
    return decision.choice == observation.serving
