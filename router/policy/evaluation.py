"""Which candidates deserve to be tried on live requests, and which need not be (HELIOS, section 4.2)."""

from collections.abc import Iterable

from router.catalog.repository import Choice
from router.policy.cost import is_same
from router.policy.observation import Observation
from router.policy.weighing import Ranked

_ENOUGH_TRIALS = 5
_HEAD_START_MS = 600_000.0  # time of which the budget may be spent at once when a server starts
_BYTES_PER_MS = 500_000.0  # weights loaded, where no swap was measured yet


def to_try(observation: Observation, best: list[Ranked]) -> list[Choice]:
    """In the order of their expected cost; empty where measuring could not change what serves."""
    bar = _bar(observation, best)
    shortlist = best[: observation.repository.loop.shortlist]
    return [
        option.choice
        for option in shortlist
        if option.as_cost.least < bar and is_open(observation, option.choice)
    ]


def affordable(observation: Observation, choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """The first of them, each once, as far as the budget of evaluation goes."""
    left_ms = _budget_left_ms(observation)
    chosen: list[Choice] = []
    for choice in dict.fromkeys(choices):
        left_ms -= overhead_ms(observation, choice)
        if left_ms < 0:
            break
        chosen.append(choice)
    return tuple(chosen)


def is_open(observation: Observation, choice: Choice) -> bool:
    """It was not measured of late under such prompts, or by so few requests that more may tell more."""
    if is_same(observation, choice, observation.serving):
        return False
    row = observation.row(choice)
    return row is None or row.num_requests < _ENOUGH_TRIALS * observation.repository.loop.evaluation_requests


def overhead_ms(observation: Observation, choice: Choice) -> float:
    """What trying a choice may cost: loading it, and what serves now again afterwards."""
    return change_ms(observation, choice) + change_ms(observation, observation.serving)


def change_ms(observation: Observation, choice: Choice) -> float:
    """What changing to a choice takes, as it was measured or by its weights."""
    row = observation.row_of_any_prompts(choice)
    is_same_model = choice.candidate == observation.serving.candidate
    measured = None if row is None else row.deepen_ms if is_same_model else row.swap_ms
    if measured is not None:
        return measured
    profile = observation.profiles[choice.candidate]
    missing_layers = max(0, choice.depth - observation.serving.depth) if is_same_model else choice.depth
    other_bytes = 0 if is_same_model else profile.other_bytes
    return (other_bytes + missing_layers * profile.layer_bytes) / _BYTES_PER_MS


def _bar(observation: Observation, best: list[Ranked]) -> float:
    """What a choice has to undercut: the best that was measured, less what a swap has to gain."""
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
