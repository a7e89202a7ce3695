"""Decides which choices may serve at all, with the reason against one as a sentence. Ignores cost.

A choice needs a certificate whose lower bound reaches the floor. Agreement measured on live answers can only
revoke that, never grant it.
"""

from router.catalog.profile import CandidateProfile
from router.catalog.repository import Choice, is_good_enough
from router.policy.cost import run_of, step_ms
from router.policy.observation import Observation
from telemetry.history import Row

_LEAST_ANSWERS = 8  # scored answers needed before they count against a certificate


def why_not(observation: Observation, choice: Choice) -> str:
    """The reason why a choice may not serve; "" if it may."""
    return why_never(observation, choice) or why_not_now(observation, choice)


def why_never(observation: Observation, choice: Choice) -> str:
    """The reason against a choice under any load: it may not serve for a moment; "" if none."""
    profile = observation.profiles.get(choice.candidate)
    if profile is None:
        return f"the repository has no candidate {choice.candidate}"
    if choice not in profile.choices:
        return f"the repository does not allow it {choice.depth} layers"
    if choice not in observation.served and (
        unavailable_reason := profile.unavailable_reason or observation.load_failures.get(choice, "")
    ):
        return unavailable_reason
    return _too_large(observation, profile, choice) or _too_bad(observation, profile, choice)


def why_not_now(observation: Observation, choice: Choice) -> str:
    """The reason against a choice under the current traffic, measured or expected; "" if none."""
    return _too_unsure(observation, choice) or _too_slow(observation, choice) or _too_hot(observation, choice)


def keeps_floor(observation: Observation, choice: Choice) -> bool:
    """The choice keeps the quality floor for the current prompts, other reasons aside."""
    profile = observation.profiles.get(choice.candidate)
    return profile is not None and choice in profile.choices and not _too_bad(observation, profile, choice)


def is_revoked(observation: Observation, choice: Choice) -> bool:
    """Scored live answers show, with confidence, agreement below the floor under current prompts."""
    row = observation.row(choice)
    found = row.agreement if row is not None else None
    if found is None or found.num_sequences < _LEAST_ANSWERS:
        return False
    return found.high < observation.repository.floor.agreement


def _too_large(observation: Observation, profile: CandidateProfile, choice: Choice) -> str:
    """The reason if weights and one request of mean length do not fit into memory."""
    demand, limit = observation.demand, _memory_limit(observation)
    kv_bytes = (demand.prompt_tokens + demand.answer_tokens) * profile.kv_bytes * choice.depth
    needed = profile.weight_bytes(choice.depth) + kv_bytes
    if needed <= limit:
        return ""
    return f"it needs {needed / 2**20:.0f} MiB of memory and may have {limit / 2**20:.0f}"


def _memory_limit(observation: Observation) -> int:
    limit = observation.repository.limits.memory_bytes
    return observation.device.memory_bytes if limit is None else min(limit, observation.device.memory_bytes)


def _too_bad(observation: Observation, profile: CandidateProfile, choice: Choice) -> str:
    candidate, floor = profile.candidate, observation.repository.floor
    if not is_good_enough(candidate, floor):
        return f"its quality of {candidate.figures.quality} is below the floor of {floor.quality}"
    proven = profile.proven.get(choice.depth, 0.0)
    if proven < 1 and (strange := _strange_prompts(observation, profile)):
        return f"its exits were not made for {strange}, which many prompts are"
    if proven < floor.agreement:
        found = f"only {proven:.2f} is proven" if proven else "nothing is proven"
        return f"{found} of its agreement with full depth, and the floor is {floor.agreement:.2f}"
    if is_revoked(observation, choice):
        return f"live answers agree too little with full depth for the floor of {floor.agreement:.2f}"
    return ""


def _strange_prompts(observation: Observation, profile: CandidateProfile) -> str:
    """The reason if a class that counts was not among those that the exits were made for."""
    made_for = profile.candidate.prompts
    if not made_for:
        return ""
    return next((name for name in observation.counted if name not in made_for), "")


def _too_unsure(observation: Observation, choice: Choice) -> str:
    row, loop = observation.row(choice), observation.repository.loop
    if choice == observation.breached:
        return "too many of its tokens were under threshold a moment ago"
    if row is None or row.num_tokens < loop.breach_window:
        return ""
    if row.breach_rate <= loop.breach_limit / loop.breach_window:
        return ""
    return f"{row.breach_rate:.0%} of its tokens were under threshold"


def _too_slow(observation: Observation, choice: Choice) -> str:
    limits, row = observation.repository.limits, observation.row(choice)
    run = run_of(observation, choice)
    if not run.num_measured:
        return ""  # evaluation will tell; estimates rule nothing out
    batch = min(observation.demand.batch_size, run.batch_size)
    itl = step_ms(run, batch)
    ttft = run.fit.prefill_ms(round(observation.demand.prompt_tokens), run.prompt_depth) + itl
    ttft, itl = _seen_or(row, ttft, itl)
    if limits.p95_ttft_ms is not None and ttft > limits.p95_ttft_ms:
        return f"its p95 of time to first token is {ttft:.0f} ms, and {limits.p95_ttft_ms:.0f} are allowed"
    if limits.p95_itl_ms is not None and itl > limits.p95_itl_ms:
        return f"its p95 of time between tokens is {itl:.0f} ms, and {limits.p95_itl_ms:.0f} are allowed"
    return ""


def _seen_or(row: Row | None, ttft_ms: float, itl_ms: float) -> tuple[float, float]:
    """Measured percentiles, else the estimates."""
    if row is None:
        return ttft_ms, itl_ms
    return (
        ttft_ms if row.ttft_p95_ms is None else row.ttft_p95_ms,
        itl_ms if row.itl_p95_ms is None else row.itl_p95_ms,
    )


def _too_hot(observation: Observation, choice: Choice) -> str:
    limit, row = observation.repository.limits.watts, observation.row(choice)
    if limit is None:
        return ""
    watts = observation.device.watts
    if row is not None and row.joules_per_token is not None and row.throughput is not None:
        watts = row.joules_per_token * row.throughput
    if watts is None or watts <= limit:
        return ""
    return f"it takes {watts:.0f} W, and {limit:.0f} are allowed"
