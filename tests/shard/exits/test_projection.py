"""Projections written when a row next goes deep are those that writing them at every exit would have made."""

import random
from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from shard.engine.sequence import Sequence
from shard.engine.sequence_table import Chunk
from shard.messages import NewSequence, Step, Work
from shard.runner import ModelRunner
from tests.shard.driving import make_runner, num_left_at, prompts_of
from tests.shard.exit_files import write_exits

EXITS, DEPTH = [1, 2, 3], 4
PROMPT_LENGTHS = [20, 7, 33, 12]


@pytest.fixture
def projecting(tiny_model, tmp_path: Path):
    """`projecting(shape, head, mode, **config)` makes a runner that draws where rows leave."""

    def make(shape: str, head: str, mode: str, **config) -> ModelRunner:
        folder = tmp_path / f"{shape}-{head}"
        if not folder.exists():
            write_exits(folder, tiny_model(shape), EXITS, head)
        replay = tmp_path / "replay.json"
        replay.write_text('{"shares": {"1": 0.45, "2": 0.2, "3": 0.15}}')
        settings = {"exit_fallback": False, "exits": str(folder), "replay_exits": str(replay)} | config
        return make_runner(tiny_model(shape), exit_mode=mode, kv_fill="project", **settings)

    return make


class Watched:
    """A runner driven by hand, and how deep each token that it has in its cache was run."""

    def __init__(self, runner: ModelRunner):
        self.runner = runner
        self.depths: dict[int, list[int]] = {}
        self.num_preempted = 0
        self.num_fills = 0
        self._prompts: dict[int, list[int]] = {}
        self._said: dict[int, list[int]] = {}
        self._attempts: dict[int, int] = {}
        self._number = 0

    def add(self, id: int, prompt: list[int]) -> None:
        self._prompts[id], self._said[id], self._attempts[id] = prompt, [], 0
        self.step(new=[id])

    def step(self, new: Collection[int] = (), drop: Collection[int] = ()) -> None:
        self._number += 1
        work = [Work(id, attempt, 64) for id, attempt in self._attempts.items()]
        drops = [(id, self._attempts[id]) for id in drop]
        output = self.runner.run(Step(self._number, work, [self._new(id) for id in new], drops))
        self.num_fills += output.exits.kv_fills if output.exits else 0
        for made in output.outputs:
            self._said[made.id] += [token.id for token in made.tokens]
            self.depths[made.id] += [token.exit_layer for token in made.tokens]
        for id in drop:
            del self._attempts[id]
        again = [id for id, _ in output.preempted if id in self._attempts]
        self.num_preempted += len(again)
        for id in again:
            self._attempts[id] += 1
        if again:
            self.step(new=again)

    def _new(self, id: int) -> NewSequence:
        """All that it begins with runs to the end, its last token as the next one's depth will say."""
        tokens = self._prompts[id] + self._said[id]
        self.depths[id] = [DEPTH] * (len(tokens) - 1)
        return NewSequence(id, self._attempts[id], tokens, len(self._prompts[id]), 90, ignore_eos=True)


@torch.inference_mode()
def eager_kv(runner: ModelRunner, sequence: Sequence, depths: list[int]) -> list[tuple[torch.Tensor, ...]]:
    """Keys and values of each layer, written token by token: beyond its exit, of its hidden state there."""
    decoder, pools = runner.decoder, runner.kv_cache.layers
    copy = Sequence(NewSequence(0, 0, sequence.token_ids, len(sequence.token_ids), 1))
    copy.blocks = list(range(-(-len(depths) // 16)))
    blocks = {
        exit_head.layer: exit_head.block for exit_head in runner.stack.exits if exit_head.block is not None
    }
    for position, depth in enumerate(depths):
        batch = runner.make_batch([Chunk(copy, position, 1)])
        hidden = decoder.embed(batch)
        for layer in range(DEPTH):
            after = decoder.run_layer(layer, hidden, batch, pools[layer])
            hidden = after if layer < depth else hidden
            if layer + 1 in blocks:
                block = blocks[layer + 1]
                decoder.project(block, hidden, batch, pools[block])
    at = torch.tensor(copy.blocks)
    return [runner.ops.read(pool, at, len(depths), decoder.shape.heads.dim) for pool in pools]


def compare(watched: Watched, reference: ModelRunner) -> int:
    """Every layer's keys and values, as far as they are written; how many tokens had been left early."""
    runner, num_left = watched.runner, 0
    for id, sequence in runner.table.sequences.items():
        num_tokens = sequence.num_computed_tokens
        depths = (watched.depths[id] + [DEPTH])[:num_tokens]  # one that waits has no token yet
        expected = eager_kv(reference, sequence, depths)
        blocks, dim = torch.tensor(sequence.blocks), runner.decoder.shape.heads.dim
        known = list[int]()
        for segment in range(DEPTH):
            num_left += num_left_at(sequence, segment)
            known.append(num_tokens - sum(num_left_at(sequence, s) for s in range(segment + 1)))
        segment_of = [
            next(s for s, end in enumerate([*EXITS, DEPTH]) if layer < end) for layer in range(DEPTH)
        ]
        segment_of += [s for s, exit_head in enumerate(runner.stack.exits) if exit_head.block is not None]
        for layer, segment in enumerate(segment_of):
            ours = runner.ops.read(runner.kv_cache.layers[layer], blocks, known[segment], dim)
            for a, b in zip(ours, expected[layer], strict=True):
                torch.testing.assert_close(a, b[: known[segment]], atol=1e-4, rtol=1e-4)
    return num_left


@pytest.mark.parametrize("shape", ["llama", "opt"])
@pytest.mark.parametrize("head", ["norm", "block"])
@pytest.mark.parametrize("mode", ["per_row", "synchronized"])
def test_lazy_projection_is_eager_projection(projecting, shape: str, head: str, mode: str):
    watched = Watched(projecting(shape, head, mode))
    reference = projecting(shape, head, mode)
    prompts = prompts_of(reference.decoder.shape.vocab_size, PROMPT_LENGTHS)
    for id, prompt in enumerate(prompts[: 2 if mode == "synchronized" else 4]):
        watched.add(id, prompt)
    num_left = 0
    for _ in range(6):
        for _ in range(7):
            watched.step()
        num_left += compare(watched, reference)
    assert num_left > 0
    assert watched.num_fills > 0


@pytest.mark.parametrize("head", ["norm", "block"])
def test_it_stays_so_when_rows_wait_are_preempted_and_are_dropped(projecting, head: str):
    block_bytes = projecting("llama", head, "per_row").block_bytes
    runner = projecting("llama", head, "per_row", kv_cache_bytes=14 * block_bytes)
    runner.exiting.deferral.wanted = lambda num_rows: 3.0
    watched, reference = Watched(runner), projecting("llama", head, "per_row")
    draw, num_waited, num_left = random.Random(1), 0, 0
    prompts = prompts_of(reference.decoder.shape.vocab_size, PROMPT_LENGTHS * 3)
    live: list[int] = []
    for id, prompt in enumerate(prompts):
        live.append(id)
        watched.add(id, prompt)
        for _ in range(8):
            watched.step()
        num_waited += sum(sequence.waits for sequence in runner.table.sequences.values())
        num_left += compare(watched, reference)
        if len(live) == 4:
            gone = live.pop(draw.randrange(4))
            watched.step(drop=[gone])
    assert watched.num_preempted > 0
    assert num_waited > 0
    assert num_left > 0


def test_what_a_sequence_leaves_undone_at_its_end_is_never_done(projecting):
    """With every token leaving at the first exit, nothing is ever projected."""
    runner = projecting("llama", "norm", "per_row", exit_threshold=0.0, replay_exits=None)
    watched = Watched(runner)
    for id, prompt in enumerate(prompts_of(runner.decoder.shape.vocab_size, PROMPT_LENGTHS)):
        watched.add(id, prompt)
    for _ in range(20):
        watched.step()
    assert all(set(depths[len(depths) - 19 :]) == {1} for depths in watched.depths.values())
    assert watched.num_fills == 0
