"""Which candidates deserve to be tried on live requests, and which need not be (HELIOS, section 4.2)."""

from collections.abc import Iterable

from router.catalog.repository import Choice
from router.policy.cost import is_same
from router.policy.observation import Seen
from router.policy.weighing import Weighed

_ENOUGH_TRIALS = 5
_HEAD_START_MS = 600_000.0  # time of which the budget may be spent at once when a server starts
_BYTES_PER_MS = 500_000.0  # weights loaded, where no swap was measured yet


def to_try(seen: Seen, best: list[Weighed]) -> list[Choice]:
    """In the order of their expected cost; empty where measuring could not change what serves."""
    bar = _bar(seen, best)
    shortlist = best[: seen.repository.loop.shortlist]
    return [one.choice for one in shortlist if one.as_cost.least < bar and is_open(seen, one.choice)]


def affordable(seen: Seen, choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """The first of them, each once, as far as the budget of evaluation goes."""
    left_ms = _budget_left_ms(seen)
    chosen: list[Choice] = []
    for choice in dict.fromkeys(choices):
        left_ms -= overhead_ms(seen, choice)
        if left_ms < 0:
            break
        chosen.append(choice)
    return tuple(chosen)


def is_open(seen: Seen, choice: Choice) -> bool:
    """It was not measured of late under such prompts, or by so few requests that more may tell more."""
    if is_same(seen, choice, seen.serving):
        return False
    row = seen.row(choice)
    return row is None or row.num_requests < _ENOUGH_TRIALS * seen.repository.loop.evaluation_requests


def overhead_ms(seen: Seen, choice: Choice) -> float:
    """What trying a choice may cost: loading it, and what serves now again afterwards."""
    return change_ms(seen, choice) + change_ms(seen, seen.serving)


def change_ms(seen: Seen, choice: Choice) -> float:
    """What changing to a choice takes, as it was measured or by its weights."""
    row = seen.row_of_any_prompts(choice)
    is_same_model = choice.candidate == seen.serving.candidate
    measured = None if row is None else row.deepen_ms if is_same_model else row.swap_ms
    if measured is not None:
        return measured
    facts = seen.facts[choice.candidate]
    missing_layers = max(0, choice.depth - seen.serving.depth) if is_same_model else choice.depth
    other_bytes = 0 if is_same_model else facts.other_bytes
    return (other_bytes + missing_layers * facts.layer_bytes) / _BYTES_PER_MS


def _bar(seen: Seen, best: list[Weighed]) -> float:
    """What a choice has to undercut: the best that was measured, less what a swap has to gain."""
    known = [one for one in best if one.choice == seen.serving or seen.row(one.choice) is not None]
    least = min((one.as_cost.most for one in known), default=float("inf"))
    return least * (1 - seen.repository.loop.hysteresis)


def _budget_left_ms(seen: Seen) -> float:
    standing = seen.standing
    return (
        seen.repository.loop.evaluation_budget * (standing.elapsed_ms + _HEAD_START_MS)
        - standing.evaluated_ms
    )
