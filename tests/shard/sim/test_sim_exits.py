"""Simulated exits: drawn from each class's distribution, and the same every time they are asked."""

import msgspec
import pytest

from shard.engine.sequence import Sequence
from shard.messages import ExitReport, NewSequence, ShardConfig
from shard.sim.sim_exits import Leave, PromptClass, SimExits, class_of, report_of

EASY = PromptClass({5: 0.8, 10: 0.15}, agreement=0.0)
HARD = PromptClass({20: 0.3}, agreement=0.5)
CLASSES = (EASY, HARD)
NUM_TOKENS = 4000


def exits(depth: int | None = None, **settings: object) -> SimExits:
    config = msgspec.structs.replace(ShardConfig("m", "sim", num_layers=depth), **settings)
    return SimExits(config, CLASSES, 30, 1000)


def answering(prompt_token: int, position: int = 8, **fields: object) -> Sequence:
    """A sequence that decodes."""
    return Sequence(NewSequence(position, 0, [prompt_token] * position, 3, 99, **fields))


def drawn(sim: SimExits, prompt_token: int) -> list[Leave]:
    """How many tokens of one class leave, each at a position of its own."""
    sequences = [answering(prompt_token, position) for position in range(4, 4 + NUM_TOKENS)]
    return [sim.leaves([sequence])[sequence.id] for sequence in sequences]


@pytest.mark.parametrize(
    ("prompt", "index"), [([1, 2, 999], 0), ([999, 998, 1], 1), ([1, 999], 0), ([], 0), ([2000], 1)]
)
def test_a_prompts_class_is_that_of_most_of_its_tokens(prompt: list[int], index: int) -> None:
    assert class_of(prompt, 1000, 2) == index


def test_rows_leave_as_their_class_says() -> None:
    leaves = drawn(exits(exit_mode="per_row"), 1)
    shares = [sum(leave.layer == layer for leave in leaves) / NUM_TOKENS for layer in (5, 10, 30)]
    assert shares == pytest.approx([0.8, 0.15, 0.05], abs=0.03)
    assert all(leave.is_right and not leave.is_breach for leave in leaves)


def test_a_cap_takes_everybody_and_counts_the_unsure() -> None:
    leaves = drawn(exits(20, exit_mode="capped"), 999)
    assert {leave.layer for leave in leaves} == {20}
    assert sum(leave.is_breach for leave in leaves) / NUM_TOKENS == pytest.approx(0.7, abs=0.03)
    assert sum(leave.is_right for leave in leaves) / NUM_TOKENS == pytest.approx(0.65, abs=0.03)
    again = drawn(exits(20, exit_mode="capped"), 999)
    assert leaves == again


def test_thresholds_are_those_of_exits_in_use() -> None:
    assert exits(15, exit_mode="per_row", exit_threshold=0.7).thresholds == {5: 0.7, 10: 0.7}
    assert exits(15, exit_mode="capped", exit_threshold=0.7).thresholds == {15: 0.7}
    assert exits(exit_mode="speculative").thresholds == exits().thresholds == {}


def test_a_batch_leaves_together_where_the_last_one_does() -> None:
    sequences = [answering(token, position) for token in (1, 999) for position in (4, 5, 6)]
    alone = [exits(exit_mode="per_row").leaves([s])[s.id].layer for s in sequences[:3]]
    together = exits(exit_mode="synchronized").leaves(sequences[:3])
    assert {leave.layer for leave in together.values()} == {max(alone)}


@pytest.mark.parametrize("fields", [{"exact": True}, {"exit_threshold": 1.0}])
def test_who_wants_full_depth_gets_it(fields: dict[str, object]) -> None:
    sequence = answering(1, **fields)
    assert exits(exit_mode="per_row").leaves([sequence])[sequence.id] == Leave(30)


def test_a_report_adds_up() -> None:
    leaves = [Leave(10, 0.5, is_breach=True), Leave(10, 1.0), Leave(30)]
    assert report_of(leaves, 7.0) == ExitReport({10: 2, 30: 1}, 1.5, 2, 1, segment_ms=[7.0])
