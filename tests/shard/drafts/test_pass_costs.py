"""What rows cost is learned from passes, and outlives changes of the machine's speed."""

import random

import pytest

from shard.drafts.pass_costs import PassCosts


def truth(sequences: int, drafts: int, others: int = 0) -> float:
    """Flat to eight rows, then as much as rows."""
    rows = sequences + drafts + others
    return 10 + 0.2 * rows + max(0, rows - 8)


def learned(slower: float = 1.0, steps: int = 3000) -> PassCosts:
    costs, draw = PassCosts(), random.Random(0)
    for step in range(steps):
        sequences, drafts = draw.choice([1, 4, 16]), draw.choice([0, 1, 3, 5, 8, 20])
        noise = draw.uniform(0.9, 1.1) * (slower if step > steps / 2 else 1.0)
        costs.note(sequences, drafts, 0, truth(sequences, drafts) * noise)
    return costs


@pytest.mark.parametrize("slower", [1.0, 3.0])
def test_ratios_are_those_of_the_machine(slower: float) -> None:
    costs = learned(slower)
    for sequences in (1, 4, 16):
        for drafts in (1, 3, 8, 20):
            ratio = costs.ms(sequences, drafts) / costs.ms(sequences, 0)
            assert ratio == pytest.approx(truth(sequences, drafts) / truth(sequences, 0), rel=0.15)
    assert costs.ms(4, 0) == pytest.approx(truth(4, 0) * slower, rel=0.15)


def test_a_number_of_sequences_never_seen_is_guessed_from_others() -> None:
    ratio = (costs := learned()).ms(6, 8) / costs.ms(6, 0)
    assert ratio == pytest.approx(truth(6, 8) / truth(6, 0), rel=0.4)


def test_a_pass_that_was_held_up_once_counts_little() -> None:
    costs = learned()
    before = costs.ms(4, 3) / costs.ms(4, 0)
    costs.note(4, 3, 0, 5000.0)
    assert costs.ms(4, 3) / costs.ms(4, 0) < 1.15 * before
