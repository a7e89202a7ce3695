"""Several shards, prompts of several kinds: each by its own choice where that pays, and above the floor."""

import copy

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.catalog.repository import Choice, Loop
from router.policy.classes import single_class_view
from router.policy.decide import decide
from router.policy.decision import DecisionKind
from router.policy.observation import Demand, Evaluation, LoopCounters, Observation
from router.policy.splitting import share_out
from telemetry.history import Interval
from tests.router.policy.observations import CHOICES, is_allowed, moments, observation_of, profile_of, row
from tests.router.policy_world import Fleet, fleet

NUM_LAYERS = 24
FULL, CHAT, CODE = Choice("full", NUM_LAYERS), Choice("chat", 12), Choice("code", 12)
BOTH = Demand(64, 64, 4, {"chat": 0.5, "code": 0.5})
SPLIT = {"chat": CHAT, "code": CODE}


def specialists(**rest) -> Observation:
    """One model whole, and with exits for each of two kinds of prompts, all of which were measured."""
    profile = [
        profile_of("full", depths=()),
        *(profile_of(name, prompts=(name,)) for name in ("chat", "code")),
    ]
    history = [row(FULL, prompts="mixed"), row(CHAT), row(CODE, prompts="code")]
    fields = {"demand": BOTH, "shards": (FULL,) * 4, "history": history} | rest
    return observation_of(*profile, **fields)


def carried_out(observation: Observation, decision) -> Observation:
    shards = decision.shards or (decision.choice,) * len(observation.shards)
    return msgspec.structs.replace(observation, serving=decision.choice, split=decision.split, shards=shards)


# Plain cases


def test_each_kind_of_prompts_gets_the_choice_that_is_best_for_it_alone():
    decision = decide(specialists())
    assert (decision.kind, decision.split) == (DecisionKind.SPLIT, SPLIT)
    assert sorted(decision.shards) == [CHAT, CHAT, CODE, CODE]
    assert decision.is_elective
    assert "chat at 12 layers for chat and code at 12 layers for code cost" in decision.why
    assert {ranked.prompts for ranked in decision.considered} == {"", "chat", "code"}


def test_shards_follow_the_work():
    observation = specialists(demand=Demand(64, 64, 4, {"chat": 0.75, "code": 0.25}), shards=(FULL,) * 8)
    shards = decide(observation).shards
    assert (shards.count(CHAT), shards.count(CODE)) == (6, 2)


def test_shards_that_would_be_idle_speak_against_it():
    """Of two shards one would do a fifth of the work."""
    observation = specialists(demand=Demand(64, 64, 4, {"chat": 0.8, "code": 0.2}), shards=(FULL,) * 2)
    assert decide(observation).kind is DecisionKind.STAY
    assert decide(msgspec.structs.replace(observation, shards=(FULL,) * 10)).kind is DecisionKind.SPLIT


@pytest.mark.parametrize("shards", [(), (FULL,)])
def test_one_shard_serves_one_choice(shards):
    assert decide(specialists(shards=shards)).kind is DecisionKind.STAY


def test_what_was_not_measured_for_its_prompts_is_tried_first():
    decision = decide(specialists(history=[row(FULL, prompts="mixed"), row(CHAT)]))
    assert (decision.kind, decision.choice) == (DecisionKind.EVALUATE, CODE)


def test_a_split_has_a_budget_like_any_swap():
    often = LoopCounters(num_requests=900, reassessed_at=0, swapped_at=(100, 300, 500, 700))
    assert decide(specialists(counters=often)).kind is DecisionKind.STAY


def test_a_small_gain_makes_no_split():
    dear = [row(FULL, 0.55, prompts="mixed"), row(CHAT), row(CODE, prompts="code")]
    assert decide(specialists(history=dear)).kind is DecisionKind.STAY


def test_a_class_that_nobody_is_certified_for_forbids_it():
    profile = [profile_of("full", depths=(), proven={NUM_LAYERS: 0.1}), profile_of("chat", prompts=("chat",))]
    observation = observation_of(*profile, demand=BOTH, shards=(FULL,) * 4, history=[row(CHAT)])
    assert decide(observation).kind is not DecisionKind.SPLIT


def test_a_revoked_choice_ends_the_split():
    bad = row(CODE, prompts="code", agreement=Interval(0.5, 0.4, 0.6, 30))
    history = [row(FULL, prompts="mixed"), row(CHAT), bad]
    observation = specialists(history=history, split=SPLIT, serving=CHAT, shards=(CHAT, CHAT, CODE, CODE))
    decision = decide(observation)
    assert decision.split.get("code") != CODE
    assert "Code at 12 layers may not serve any longer: live answers agree too little" in decision.why


def test_breaches_of_one_choice_end_the_split():
    counters = LoopCounters(is_breached=True, breaching=CODE)
    observation = specialists(counters=counters, split=SPLIT, serving=CHAT, shards=(CHAT, CHAT, CODE, CODE))
    decision = decide(observation)
    assert (decision.choice.depth, decision.split) == (NUM_LAYERS, {})
    assert "tokens left code at 12 layers under threshold" in decision.why


@pytest.mark.parametrize("name", ["chat", "code"])
def test_a_trial_leaves_each_kind_a_shard(name):
    shards = (CHAT, CODE)
    proven = {"chat": {12: 0.9}, "code": {12: 0.9}} | {name: {6: 0.9, 12: 0.9}}
    own = [profile_of(name, prompts=(name,), proven=proven[name]) for name in ("chat", "code")]
    profile = [profile_of("full", depths=()), *own]
    history = [row(FULL, prompts="mixed"), row(CHAT), row(CODE, prompts="code")]
    observation = observation_of(
        *profile, demand=BOTH, shards=shards, history=history, split=SPLIT, serving=CHAT
    )
    decision = decide(observation)
    assert (decision.kind, decision.choice) == (DecisionKind.EVALUATE, Choice(name, 6))
    assert [choice.candidate for choice in decision.shards] == ["chat", "code"]


def shared(chat: int, code: int, share: float, is_steady: bool = True) -> Observation:
    """A split over so many shards of each, when chat has a share of the traffic."""
    mix = {"chat": share, "code": 1 - share}
    demand = Demand(64, 64, 4, mix, mix if is_steady else {})
    return specialists(split=SPLIT, serving=CHAT, shards=(CHAT,) * chat + (CODE,) * code, demand=demand)


def test_shards_of_a_split_move_with_the_work_on_steady_evidence():
    decision = decide(shared(3, 1, 0.5))
    assert decision.shards == (CHAT, CHAT, CODE, CODE)
    assert "to have 2 for chat at 12 layers and 2 for code at 12 layers costs" in decision.why
    assert decide(shared(3, 1, 0.5, is_steady=False)).kind is DecisionKind.STAY


def test_shards_of_a_split_do_not_move_for_what_would_be_worth_a_swap_otherwise():
    assert decide(shared(3, 3, 0.65)).kind is DecisionKind.STAY
    assert decide(shared(3, 3, 0.8)).kind is DecisionKind.SPLIT


def test_what_serves_a_part_of_the_prompts_is_not_left_for_what_failed_elsewhere():
    observation = shared(2, 2, 0.5)
    broken = msgspec.structs.replace(observation, load_failures={CODE: "it is broken", CHAT: "it is broken"})
    assert decide(broken).split == SPLIT


def test_shards_of_a_split_that_have_died_are_stood_in_for():
    observation = specialists(split=SPLIT, serving=CHAT, shards=(CHAT, CHAT, CHAT))
    assert sorted(decide(observation).shards) == [CHAT, CHAT, CODE]


def test_a_class_that_becomes_rare_does_not_end_a_split_at_once():
    rarer = Demand(64, 64, 4, {"chat": 0.85, "code": 0.15})
    shards = (CHAT,) * 8 + (CODE,) * 2
    assert decide(specialists(demand=rarer, split=SPLIT, serving=CHAT, shards=shards)).split == SPLIT
    gone = Demand(64, 64, 4, {"chat": 0.98, "code": 0.02})
    decision = decide(specialists(demand=gone, split=SPLIT, serving=CHAT, shards=shards))
    assert (decision.kind, decision.choice, decision.split) == (DecisionKind.SWITCH, CHAT, {})
    assert "no use any more in telling prompts apart" in decision.why


@given(
    st.lists(st.sampled_from(CHOICES), min_size=1, max_size=9),
    st.dictionaries(st.sampled_from(CHOICES), st.floats(0.01, 9), min_size=1),
)
def test_shards_are_shared_out_by_load_and_keep_what_they_serve(serving, load):
    shared = share_out(serving, load)
    heaviest = sorted(load, key=lambda choice: (-load[choice], choice))[: len(serving)]
    assert set(shared) == set(heaviest)
    assert share_out(shared, load) == shared
    kept = sum(old == new for old, new in zip(serving, shared, strict=True))
    assert kept == sum(min(serving.count(choice), shared.count(choice)) for choice in set(shared))


# Whatever it sees


NAMES = ("full", "chat", "code")
SERVABLE = [Choice(name, depth) for name in NAMES for depth in (6, 12, NUM_LAYERS)]


@st.composite
def measured(draw, choice):
    """Rows of a choice, under some of the kinds of prompts."""
    names = draw(st.sets(st.sampled_from(["chat", "code", "maths", "mixed"]), min_size=1))
    low = draw(st.sampled_from([0.5, 0.95]))
    found = draw(st.sampled_from([None, Interval(low, low - 0.05, low + 0.05, 30)]))
    return [
        row(
            choice,
            draw(st.sampled_from([0.5, 1.0, 1.1])),
            prompts=name,
            agreement=found,
            breaches=draw(st.sampled_from([0, 0, 3900])),
        )
        for name in sorted(names)
    ]


@st.composite
def fleets(draw):
    """Several shards at some moment, at which there is often something to be said for a split."""
    lows = st.sampled_from([0.5, 0.85, 0.9])
    profile = [
        profile_of(name, proven={6: draw(lows), 12: draw(lows)}, prompts=() if name == "full" else (name,))
        for name in NAMES
    ]
    weights = {name: draw(st.integers(0, 10)) for name in ("chat", "code")} | {
        "maths": draw(st.integers(0, 3))
    }
    total = max(1, sum(weights.values()))
    mix = {name: weight / total for name, weight in weights.items() if weight}
    shards = tuple(draw(st.lists(st.sampled_from(SERVABLE), min_size=2, max_size=6)))
    serving, other = draw(st.tuples(st.sampled_from(shards), st.sampled_from(shards)))
    split = draw(st.sampled_from([{}, {"chat": serving, "code": other}])) if serving != other else {}
    trial = st.builds(Evaluation, st.sampled_from(SERVABLE), st.integers(0, 6))
    counters = LoopCounters(
        num_requests=1000,
        reassessed_at=draw(st.sampled_from([0, 0, 990])),
        swapped_at=tuple(draw(st.lists(st.integers(0, 1000), max_size=4))),
        evaluation=draw(st.sampled_from([None, None, draw(trial)])),
        evaluated_ms=draw(st.sampled_from([0.0, 1e12])),
        elapsed_ms=1e6,
        num_shards=len(shards),
        is_breached=draw(st.sampled_from([False, False, True])),
        breaching=serving,
    )
    return observation_of(
        *profile,
        serving=serving,
        split=split,
        shards=shards,
        counters=counters,
        demand=Demand(64, 64, 4, mix, draw(st.sampled_from([{}, mix]))),
        objective=draw(st.sampled_from(["throughput", "latency", "energy"])),
        history=[
            serving for choice in SERVABLE if draw(st.integers(0, 3)) for serving in draw(measured(choice))
        ],
        load_failures=draw(st.dictionaries(st.sampled_from(SERVABLE), st.just("it is broken"), max_size=1)),
    )


def is_good_enough(observation: Observation, choice: Choice, name: str) -> bool:
    """The hard rules for prompts of one class, written down independently."""
    made_for = observation.profiles[choice.candidate].candidate.prompts
    return (not made_for or name in made_for or choice.depth == NUM_LAYERS) and is_allowed(
        single_class_view(observation, name), choice
    )


def counted(observation: Observation) -> list[str]:
    return [name for name, share in observation.demand.mix.items() if share >= Loop().class_share]


@settings(max_examples=80, deadline=None)
@given(fleets())
def test_no_class_that_counts_is_served_below_the_floor(observation):
    decision = decide(observation)
    if decision.kind is DecisionKind.SPLIT:
        assert len(decision.shards) == len(observation.shards)
        assert set(decision.shards) == set(decision.split.values())
        assert len(set(decision.shards)) > 1
        for name in counted(observation):
            assert is_good_enough(observation, decision.split[name], name)
    if (
        decision.kind is DecisionKind.EVALUATE
        and observation.split
        and decision.choice not in observation.shards
    ):
        for name in counted(observation):
            assert any(is_good_enough(observation, choice, name) for choice in decision.shards)


@settings(max_examples=40, deadline=None)
@given(fleets())
def test_the_same_input_gives_the_same_decision(observation):
    assert decide(observation) == decide(copy.deepcopy(observation))


def settled(observation):
    """The same fleet with nothing on trial, no breach, and no time left for trials."""
    counters = msgspec.structs.replace(
        observation.counters, evaluation=None, is_breached=False, evaluated_ms=1e12
    )
    return msgspec.structs.replace(observation, counters=counters)


@settings(max_examples=80, deadline=None)
@given(fleets())
def test_a_split_carried_out_stays_on_the_same_evidence(observation):
    observation = settled(observation)
    first = decide(observation)
    if first.kind is DecisionKind.SPLIT:
        second = decide(carried_out(observation, first))
        assert second.kind is DecisionKind.STAY
        assert second.split == first.split
        assert second.shards in ((), first.shards)


@settings(max_examples=40, deadline=None)
@given(fleets())
def test_a_split_given_up_is_not_taken_up_on_the_same_evidence(observation):
    observation = settled(observation)
    first = decide(observation)
    if observation.split and not first.split:
        assert decide(carried_out(observation, first)).split != observation.split


@settings(max_examples=40, deadline=None)
@given(moments())
def test_with_one_shard_nothing_is_as_with_several(observation):
    alone_there = msgspec.structs.replace(observation, shards=(observation.serving,))
    assert decide(alone_there) == decide(observation)
    assert decide(alone_there).kind is not DecisionKind.SPLIT


# In a small world with noise


def mixed(world: Fleet, share=0.5):
    return lambda index: "code" if world.random.random() < share else "chat"


def best_for(name: str) -> set[Choice]:
    return {Choice(name, depth) for depth in (15, 20)}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_a_mixed_stream_ends_in_a_split_that_noise_does_not_move(seed, share):
    world = fleet(6, seed=seed)
    world.serve(600, mixed(world, share))
    assert world.policy_state.split["chat"] in best_for("chat")
    assert world.policy_state.split["code"] in best_for("code")
    num_changes = len(world.changes)
    world.serve(1500, mixed(world, share))
    assert len(world.changes) - num_changes <= 1


@pytest.mark.parametrize("seed", range(2))
def test_it_goes_back_to_one_choice_when_prompts_are_of_one_kind_again(seed):
    world = fleet(4, seed=seed)
    world.serve(600, mixed(world))
    assert world.policy_state.split
    world.serve(300, "code")
    assert not world.policy_state.split
    assert set(world.policy_state.shards) <= best_for("code")


def test_exits_that_agree_less_than_was_proven_leave_the_split():
    world = fleet(4)
    truth = world.truths["code"]
    world.truths["code"] = type(truth)(truth.sure, {"code": {15: 0.3, 20: 0.3}})
    world.serve(1500, mixed(world))
    assert any("live answers agree too little" in decision.why for _, decision in world.changes)
    assert {choice.candidate for choice in world.policy_state.shards} <= {"full", "chat"}


def test_what_cannot_be_loaded_leaves_what_serves():
    world = fleet(4)
    world.failing = {Choice("code", depth): "the file is broken" for depth in (10, 15, 20)}
    world.serve(900, mixed(world))
    assert all(choice.candidate != "code" or choice.depth == 30 for choice in world.policy_state.shards)


def test_what_is_pinned_is_not_split():
    world = fleet(4)
    world.policy_state.watch.pinned = "mona"
    world.serve(600, mixed(world))
    assert not world.policy_state.split
