"""Chooses how many guesses of which sequences a pass verifies: those that make most tokens per millisecond.

A further guess adds a row to the pass, and a token if it is right and all before it are. Within a draft the
expected tokens fall, so that taking the best of all drafts, one after the other, takes each from its front.
Every number of rows along that way is weighed, none among them. Pure.
"""

from collections.abc import Callable

Cost = Callable[[int], float]  # number of drafts -> milliseconds of the pass


def choose(chances: list[list[float]], num_tokens: float, cost: Cost) -> list[int]:
    """How many guesses of each draft to verify.

    `chances` has for each draft the chance of each guess, given those before it; `num_tokens` is what the
    pass makes without any.
    """
    ranked = sorted(
        ((-gain, place, row) for row, own in enumerate(chances) for place, gain in enumerate(gains(own)))
    )
    lengths, kept = [0] * len(chances), 0
    best, tokens = num_tokens / cost(0), num_tokens
    for count, (loss, _, _) in enumerate(ranked, 1):
        tokens -= loss
        rate = tokens / cost(count)
        if rate > best:
            best, kept = rate, count
    for _, _, row in ranked[:kept]:
        lengths[row] += 1
    return lengths


def choose_length(
    chances: list[list[float]], num_tokens: float, cost: Cost, guess_ms: float, max_length: int
) -> int:
    """How many guesses to ask of a drafter that takes `guess_ms` for one of each sequence; 0: none pays."""
    best, best_length = num_tokens / cost(0), 0
    for length in range(1, max_length + 1):
        taken = [gains(own[:length]) for own in chances]
        tokens = num_tokens + sum(map(sum, taken))
        rate = tokens / (cost(sum(map(len, taken))) + length * guess_ms)
        if rate > best:
            best, best_length = rate, length
    return best_length


def gains(chances: list[float]) -> list[float]:
    """The expected tokens of each guess: it and all before it are right."""
    made, so_far = [], 1.0
    for chance in chances:
        so_far *= chance
        made.append(so_far)
    return made
