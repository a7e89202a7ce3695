"""Selects the choices to evaluate on live requests (HELIOS, section 4.2)."""

from collections.abc import Iterable

from router.catalog.repository import Choice
from router.policy.cost import is_same, run_of
from router.policy.observation import Observation
from router.policy.weighing import Ranked

_ENOUGH_TRIALS = 5
_HEAD_START_MS = 600_000.0  # elapsed time credited at the start, so that evaluation may begin at once
_BYTES_PER_MS = 500_000.0  # assumed speed of loading weights, until a swap was measured


def to_try(observation: Observation, best: list[Ranked]) -> list[Choice]:
    """Choices to evaluate in order of expected cost; empty if measuring could not change the choice."""
    bar = _bar(observation, best)
    shortlist = best[: observation.repository.loop.shortlist]
    return [
        option.choice
        for option in shortlist
        if option.as_cost.least < bar and is_open(observation, option.choice)
    ]


def affordable(observation: Observation, choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """The first of the choices that the evaluation budget allows, without repetition."""
    left_ms = _budget_left_ms(observation)
    chosen: list[Choice] = []
    for choice in dict.fromkeys(choices):
        left_ms -= overhead_ms(observation, choice)
        if left_ms < 0:
            break
        chosen.append(choice)
    return tuple(chosen)


def is_open(observation: Observation, choice: Choice) -> bool:
    """The choice lacks a fresh measurement under current prompts, or has one of too few requests."""
    if is_same(observation, choice, observation.serving):
        return False
    row = observation.row(choice)
    return row is None or row.num_requests < _ENOUGH_TRIALS * observation.repository.loop.evaluation_requests


def overhead_ms(observation: Observation, choice: Choice) -> float:
    """Estimated ms to evaluate a choice: changing to it and back."""
    return change_ms(observation, choice) + change_ms(observation, observation.serving)


def change_ms(observation: Observation, choice: Choice) -> float:
    """Milliseconds of a shard that a change to a choice costs: loading, and what its prefix cache loses."""
    return _loading_ms(observation, choice) + _recomputing_ms(observation, choice)


def _loading_ms(observation: Observation, choice: Choice) -> float:
    """Milliseconds to change to a choice, measured or estimated from its weights."""
    row = observation.row_of_any_prompts(choice)
    is_same_model = choice.candidate == observation.serving.candidate
    measured = None if row is None else row.deepen_ms if is_same_model else row.swap_ms
    if measured is not None:
        return measured
    profile = observation.profiles[choice.candidate]
    missing_layers = max(0, choice.depth - observation.serving.depth) if is_same_model else choice.depth
    other_bytes = 0 if is_same_model else profile.other_bytes
    return (other_bytes + missing_layers * profile.layer_bytes) / _BYTES_PER_MS


def _recomputing_ms(observation: Observation, choice: Choice) -> float:
    """Milliseconds to compute again, in the new choice, what prompts are likely to ask for.

    Fewer layers of the same candidate keep the cache.
    """
    serving = observation.serving
    if choice.candidate == serving.candidate and choice.depth <= serving.depth:
        return 0.0
    fit = run_of(observation, choice).fit
    return observation.cached_tokens * (fit.token_ms + fit.token_layer_ms * choice.depth)


def _bar(observation: Observation, best: list[Ranked]) -> float:
    """The cost to undercut: the best measured one, less the gain that a swap requires."""
    known = [
        option
        for option in best
        if option.choice == observation.serving or observation.row(option.choice) is not None
    ]
    least = min((option.as_cost.most for option in known), default=float("inf"))
    return least * (1 - observation.repository.loop.hysteresis)


def _budget_left_ms(observation: Observation) -> float:
    counters = observation.counters
    return (
        observation.repository.loop.evaluation_budget * (counters.elapsed_ms + _HEAD_START_MS)
        - counters.evaluated_ms
    )
