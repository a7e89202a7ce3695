"""The decision as a pure function: what it never does, whatever it sees; and what it does in plain cases."""

import copy

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.catalog.profile import CandidateProfile
from router.catalog.repository import Candidate, Choice, Figures, Floor, Limits, Loop, Repository
from router.policy.decide import decide
from router.policy.decision import Kind
from router.policy.eligibility import why_never
from router.policy.observation import Demand, Device, Evaluation, LoopCounters, Observation
from telemetry.cost import CostFit
from telemetry.history import Interval, Row

MIB = 2**20
NOW_S = 1_000_000.0
NUM_LAYERS = 24
KINDS = ("chat", "code")


def profile_of(name="one", depths=(6, 12), proven=None, **rest) -> CandidateProfile:
    candidate = Candidate(name=name, model=rest.pop("model", "model"), exits="heads", depths=depths, **rest)
    proven = {6: 0.5, 12: 0.9} if proven is None else proven
    return CandidateProfile(
        candidate=candidate,
        num_layers=NUM_LAYERS,
        layer_bytes=10 * MIB,
        other_bytes=40 * MIB,
        kv_bytes=1000,
        proven=proven | {NUM_LAYERS: 1.0},
    )


def row(choice, ms_a_layer=1.0, requests=100, **rest) -> Row:
    rest = {"prompts": "chat", "measured_at": int(NOW_S) - 60, "num_tokens": 40 * requests} | rest
    cost = CostFit(8 * ms_a_layer, ms_a_layer, 0.0, 0.02 * ms_a_layer)
    return Row(candidate=choice.candidate, depth=choice.depth, cost=cost, num_requests=requests, **rest)


def observation_of(*profile, serving=None, history=(), **rest) -> Observation:
    profile = profile or (profile_of(),)
    candidates = tuple(one.candidate for one in profile)
    settled = {"floor": Floor(agreement=0.8), "limits": Limits(), "loop": Loop(), "objective": "throughput"}
    named = {name: rest.pop(name, value) for name, value in settled.items()}
    return Observation(
        repository=Repository(candidates=candidates, **named),
        profiles={one.candidate.name: one for one in profile},
        device=rest.pop("device", Device(memory_bytes=2000 * MIB)),
        demand=rest.pop("demand", Demand(64, 64, 4, {"chat": 1.0})),
        history=tuple(history),
        serving=serving or Choice(candidates[0].name, NUM_LAYERS),
        now_s=NOW_S,
        counters=rest.pop("counters", LoopCounters(num_requests=150, reassessed_at=0, elapsed_ms=60_000)),
        **rest,
    )


WHOLE, MIDDLE, SHALLOW = Choice("one", 24), Choice("one", 12), Choice("one", 6)


def test_before_it_is_time_nothing_changes():
    observation = observation_of(counters=LoopCounters(num_requests=149, reassessed_at=0))
    assert decide(observation).kind is Kind.STAY


def test_a_cheaper_depth_is_tried_on_live_requests_first():
    decision = decide(observation_of(history=[row(WHOLE)]))
    assert (decision.kind, decision.choice) == (Kind.EVALUATE, MIDDLE)


def test_what_history_knows_is_not_tried_again():
    decision = decide(observation_of(history=[row(WHOLE), row(MIDDLE)]))
    assert (decision.kind, decision.choice) == (Kind.LIGHTEN, MIDDLE)
    assert decision.is_elective


def test_stale_history_is_tried_again():
    stale = row(MIDDLE, measured_at=int(NOW_S) - 3601)
    assert decide(observation_of(history=[row(WHOLE), stale])).kind is Kind.EVALUATE


def test_what_cannot_change_the_choice_is_not_tried():
    small = profile_of("small", depths=(), model="small")
    large = msgspec.structs.replace(
        small, layer_bytes=100 * MIB, candidate=profile_of("large", model="large").candidate
    )
    observation = observation_of(
        small, large, history=[row(Choice("small", 24))], device=Device(20_000 * MIB)
    )
    assert decide(observation).kind is Kind.STAY


def test_evaluation_ends_with_its_budget():
    spent = LoopCounters(num_requests=150, reassessed_at=0, elapsed_ms=60_000, evaluated_ms=1e9)
    assert decide(observation_of(history=[row(WHOLE)], counters=spent)).kind is not Kind.EVALUATE


@pytest.mark.parametrize(("answered", "kind"), [(4, Kind.EVALUATE), (5, Kind.LIGHTEN)])
def test_a_trial_takes_so_many_requests(answered, kind):
    counters = LoopCounters(num_requests=160, reassessed_at=0, evaluation=Evaluation(MIDDLE, answered))
    decision = decide(observation_of(history=[row(WHOLE), row(MIDDLE)], counters=counters))
    assert (decision.kind, decision.choice) == (kind, MIDDLE)


def test_candidates_are_tried_one_after_the_other():
    counters = LoopCounters(evaluation=Evaluation(MIDDLE, 5, (SHALLOW,)))
    decision = decide(observation_of(counters=counters))
    assert (decision.kind, decision.choice, decision.waiting) == (Kind.EVALUATE, SHALLOW, ())


def test_a_small_gain_does_not_make_a_swap():
    observation = observation_of(history=[row(WHOLE, 0.53), row(MIDDLE, 0.95)])
    decision = decide(observation)
    assert decision.kind is Kind.STAY
    assert "too little less" in decision.why


def test_swaps_have_a_budget():
    often = LoopCounters(num_requests=900, reassessed_at=0, swapped_at=(100, 300, 500, 700))
    decision = decide(observation_of(history=[row(WHOLE), row(MIDDLE)], counters=often))
    assert decision.kind is Kind.STAY
    assert "4 swaps" in decision.why


def test_what_is_not_proven_never_serves():
    unproven = profile_of(proven={})
    for history in ([row(WHOLE), row(SHALLOW), row(MIDDLE)], [row(WHOLE)]):
        decision = decide(observation_of(unproven, history=history))
        assert decision.kind is Kind.STAY
        assert "nothing is proven" in decision.considered[-1].why_not


def test_live_answers_revoke_what_was_proven():
    bad = Interval(0.6, 0.55, 0.65, 30)
    observation = observation_of(
        serving=MIDDLE, history=[row(MIDDLE, agreement=bad)], counters=LoopCounters()
    )
    decision = decide(observation)
    assert (decision.kind, decision.choice) == (Kind.DEEPEN, WHOLE)
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
    assert (decision.kind, decision.choice) == (Kind.DEEPEN, WHOLE)


def test_breaches_are_answered_by_the_cheaper_of_more_layers_and_another_model():
    one, two = profile_of(depths=(6, 12, 18), proven={12: 0.9, 18: 0.9}), profile_of("two", model="two")
    counters = LoopCounters(num_requests=10, reassessed_at=0, is_breached=True)
    deeper, other = row(Choice("one", 18)), row(Choice("two", 12))
    observation = observation_of(
        one, two, serving=MIDDLE, history=[row(MIDDLE), deeper, other], counters=counters
    )
    assert decide(observation).choice == Choice("two", 12)
    dear = row(Choice("two", 12), swap_ms=1e6)
    observation = observation_of(
        one, two, serving=MIDDLE, history=[row(MIDDLE), deeper, dear], counters=counters
    )
    assert decide(observation).choice == Choice("one", 18)


def test_what_is_pinned_stays_also_under_breaches():
    decision = decide(observation_of(serving=SHALLOW, counters=LoopCounters(pinned="mona", is_breached=True)))
    assert decision.kind is Kind.STAY
    assert "pinned by mona" in decision.why


def test_what_could_not_be_loaded_is_not_chosen_again():
    observation = observation_of(history=[row(WHOLE), row(MIDDLE)], load_failures={MIDDLE: "no such file"})
    assert decide(observation).kind is Kind.STAY


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
    assert decision.kind is Kind.STAY
    assert "nothing in the repository may" in decision.why
    observation = observation_of(history=[row(WHOLE)], limits=Limits(memory_bytes=200 * MIB))
    assert decide(observation).choice == MIDDLE


def test_freed_memory_counts_where_it_makes_the_batch_larger():
    """At equal time a step, what leaves room for more sequences costs each of them less."""
    rows = [row(WHOLE, 0.5), row(MIDDLE, 0.8)]
    roomy = observation_of(history=rows, device=Device(20_000 * MIB))
    tight = observation_of(history=rows, device=Device(285 * MIB))
    assert decide(roomy).kind is Kind.STAY
    assert decide(tight).choice == MIDDLE


def test_a_limit_on_time_between_tokens_rules_out():
    rows = [row(WHOLE, itl_p95_ms=50.0), row(MIDDLE, 1.9, itl_p95_ms=20.0)]
    assert decide(observation_of(history=rows)).kind is Kind.STAY
    decision = decide(observation_of(history=rows, limits=Limits(p95_itl_ms=30)))
    assert decision.choice == MIDDLE
    assert "p95 of time between tokens is 50 ms" in decision.why


def test_energy_decides_where_it_is_the_objective():
    rows = [row(WHOLE, 1.0, joules_per_token=1.0), row(MIDDLE, 1.0, joules_per_token=2.0)]
    assert decide(observation_of(history=rows)).choice == MIDDLE
    assert decide(observation_of(history=rows, objective="energy")).kind is Kind.STAY


# Whatever it sees

SHARES = st.floats(0, 1)
CHOICES = [Choice(name, depth) for name in ("one", "two") for depth in (6, 12, NUM_LAYERS)]


@st.composite
def rows(draw):
    share = draw(SHARES)
    interval = Interval(share, max(0.0, share - 0.1), min(1.0, share + 0.1), draw(st.integers(1, 60)))
    return row(
        draw(st.sampled_from(CHOICES)),
        draw(st.floats(0.01, 100)),
        draw(st.integers(1, 300)),
        prompts=draw(st.sampled_from(KINDS)),
        agreement=draw(st.sampled_from([None, interval])),
        breaches=draw(st.integers(0, 100)),
        itl_p95_ms=draw(st.sampled_from([None, 10.0, 100.0])),
        joules_per_token=draw(st.sampled_from([None, 0.1, 3.0])),
        throughput=draw(st.sampled_from([None, 100.0])),
    )


@st.composite
def moments(draw):
    trial = st.builds(
        Evaluation, st.sampled_from(CHOICES), st.integers(0, 6), st.lists(st.sampled_from(CHOICES)).map(tuple)
    )
    counters = LoopCounters(
        num_requests=draw(st.integers(0, 2000)),
        reassessed_at=draw(st.sampled_from([None, 0, 100])),
        swapped_at=tuple(draw(st.lists(st.integers(0, 2000), max_size=5))),
        evaluation=draw(st.none() | trial),
        evaluated_ms=draw(st.floats(0, 1e6)),
        elapsed_ms=draw(st.floats(0, 1e7)),
        is_breached=draw(st.booleans()),
        drift=draw(st.sampled_from(["", "The mix has shifted"])),
    )
    code = draw(SHARES)
    proven = st.dictionaries(st.sampled_from([6, 12]), SHARES)
    made_for = st.sampled_from([(), ("chat",), ("code",)])
    profile = [
        profile_of(
            name,
            proven=draw(proven),
            prompts=draw(made_for),
            model=draw(st.sampled_from(["model", name])),
            figures=Figures(quality=draw(st.sampled_from([0.3, 0.6]))),
        )
        for name in ("one", "two")
    ]
    return observation_of(
        *profile,
        serving=draw(st.sampled_from(CHOICES)),
        history=list({one.key: one for one in draw(st.lists(rows(), max_size=8))}.values()),
        floor=Floor(draw(SHARES), draw(st.sampled_from([None, 0.5]))),
        limits=Limits(
            p95_itl_ms=draw(st.sampled_from([None, 50.0])),
            memory_bytes=draw(st.sampled_from([None, 60 * MIB, 200 * MIB])),
            watts=draw(st.sampled_from([None, 100.0])),
        ),
        objective=draw(st.sampled_from(["throughput", "latency", "energy"])),
        demand=Demand(64, 64, 4, {"chat": 1 - code, "code": code}),
        device=Device(
            draw(st.sampled_from([120, 300, 2000])) * MIB, watts=draw(st.sampled_from([None, 80.0]))
        ),
        counters=counters,
        load_failures=draw(st.dictionaries(st.sampled_from(CHOICES), st.just("it is broken"))),
    )


def is_allowed(observation: Observation, choice: Choice) -> bool:
    """The hard rules again, written down independently."""
    profile, floor = observation.profiles[choice.candidate], observation.repository.floor
    if choice.depth != NUM_LAYERS:
        proven = profile.proven.get(choice.depth, 0.0)
        live = [
            one.agreement
            for one in observation.history
            if one.key == (*_key(choice), observation.demand.prompts)
        ]
        if proven < floor.agreement:
            return False
        if any(one is not None and one.num_sequences >= 8 and one.high < floor.agreement for one in live):
            return False
    quality = profile.candidate.figures.quality
    if floor.quality is not None and (quality is None or quality < floor.quality):
        return False
    memory = min(observation.device.memory_bytes, observation.repository.limits.memory_bytes or 2**60)
    return 40 * MIB + choice.depth * (10 * MIB + 128 * 1000) <= memory


def _key(choice):
    return choice.candidate, choice.depth


@settings(max_examples=250, deadline=None)
@given(moments())
def test_nothing_is_chosen_that_may_not_serve(observation):
    """Never below the floor, never over memory: what is changed to, or tried, keeps every hard rule."""
    decision = decide(observation)
    if decision.kind is Kind.STAY:
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
    if why_never(observation, observation.serving) and decide(observation).kind is Kind.STAY:
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
    if first.kind is Kind.STAY:
        return
    after = msgspec.structs.replace(observation, serving=first.choice)
    if not why_never(after, first.choice):
        second = decide(after)
        assert second.choice == first.choice or not _is_back(second, observation)


def _is_back(decision, observation):
    return decision.choice == observation.serving
