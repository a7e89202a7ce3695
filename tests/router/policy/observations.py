"""Observations for the policy: made by hand, and drawn."""

from hypothesis import strategies as st

from router.catalog.profile import CandidateProfile
from router.catalog.repository import Candidate, Choice, Figures, Floor, Limits, Loop, Repository
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
    candidates = tuple(known.candidate for known in profile)
    settled = {"floor": Floor(agreement=0.8), "limits": Limits(), "loop": Loop(), "objective": "throughput"}
    named = {name: rest.pop(name, value) for name, value in settled.items()}
    return Observation(
        repository=Repository(candidates=candidates, **named),
        profiles={known.candidate.name: known for known in profile},
        device=rest.pop("device", Device(memory_bytes=2000 * MIB)),
        demand=rest.pop("demand", Demand(64, 64, 4, {"chat": 1.0})),
        history=tuple(history),
        serving=serving or Choice(candidates[0].name, NUM_LAYERS),
        now_s=NOW_S,
        counters=rest.pop("counters", LoopCounters(num_requests=150, reassessed_at=0, elapsed_ms=60_000)),
        **rest,
    )


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
        history=list({row.key: row for row in draw(st.lists(rows(), max_size=8))}.values()),
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
            row.agreement
            for row in observation.history
            if row.key == (choice.candidate, choice.depth, observation.demand.prompts)
        ]
        if proven < floor.agreement:
            return False
        if any(
            interval is not None and interval.num_sequences >= 8 and interval.high < floor.agreement
            for interval in live
        ):
            return False
    quality = profile.candidate.figures.quality
    if floor.quality is not None and (quality is None or quality < floor.quality):
        return False
    memory = min(observation.device.memory_bytes, observation.repository.limits.memory_bytes or 2**60)
    return 40 * MIB + choice.depth * (10 * MIB + 128 * 1000) <= memory
