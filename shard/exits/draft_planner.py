"""Chooses draft lengths and draft exits by measured acceptance. Pure.

A round of n passes to an exit and one pass beyond makes 1 + a + … + a^(n-1) tokens, where a is the acceptance
rate (Leviathan et al. 2023). The best n and exit make most tokens per millisecond, as in DEL and LEDE.
"""

import msgspec

MAX_DRAFTS = 8  # passes to the exit in one round
SMOOTHING = 0.1
PRIOR = 0.6  # acceptance rate before any measurement
EXPLORE_ROUNDS = 32  # rounds between a row's trials of another exit


class Costs(msgspec.Struct):
    """Milliseconds by exit, smoothed over rounds: a pass to it, a pass beyond it, its head."""

    shallow: list[float]
    deep: list[float]
    head: list[float]

    def note_shallow(self, exit_index: int, ms: float) -> None:
        self.shallow[exit_index] = _smoothed(self.shallow[exit_index], ms)

    def note_deep(self, exit_index: int, ms: float) -> None:
        self.deep[exit_index] = _smoothed(self.deep[exit_index], ms)

    def note_head(self, exit_index: int, ms: float) -> None:
        self.head[exit_index] = _smoothed(self.head[exit_index], ms)

    def round_ms(self, exit_index: int, num_passes: int) -> float:
        """Milliseconds of `num_passes` passes to an exit, drafts after all but the last, one pass beyond."""
        return num_passes * (self.shallow[exit_index] + self.head[exit_index]) + self.deep[exit_index]


class Acceptance:
    """Acceptance rates by exit, of one sequence or of all."""

    def __init__(self, rates: list[float]):
        self.rates = list(rates)
        self.num_rounds = 0

    def note(self, exit_index: int, drafted: int, accepted: int) -> None:
        """Note a round. Drafts behind the first refused one do not count."""
        self.num_rounds += 1
        for i in range(min(drafted, accepted + 1)):
            self.rates[exit_index] += SMOOTHING * ((i < accepted) - self.rates[exit_index])


class Plan(msgspec.Struct, frozen=True):
    """One row's round: the number of passes, and the exit to draft from."""

    exit_index: int
    num_passes: int


def plan_round(acceptance: Acceptance, costs: Costs, max_passes: int) -> Plan:
    """The round with most expected tokens per millisecond, of at most `max_passes` passes."""
    exits = range(len(acceptance.rates))
    if acceptance.num_rounds % EXPLORE_ROUNDS == EXPLORE_ROUNDS - 1:
        turn = acceptance.num_rounds // EXPLORE_ROUNDS % len(acceptance.rates)
        exits = range(turn, turn + 1)
    plans = [Plan(exit_index, n) for exit_index in exits for n in range(1, min(max_passes, MAX_DRAFTS) + 1)]
    return max(plans, key=lambda plan: _gain(plan, acceptance, costs))


def _gain(plan: Plan, acceptance: Acceptance, costs: Costs) -> float:
    rate = acceptance.rates[plan.exit_index]
    tokens = sum(rate**i for i in range(plan.num_passes))
    return tokens / max(costs.round_ms(plan.exit_index, plan.num_passes), 1e-6)


def _smoothed(before: float, value: float) -> float:
    return value if before == 0 else before + SMOOTHING * (value - before)
