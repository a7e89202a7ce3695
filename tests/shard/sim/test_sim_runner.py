"""The simulated shard: time from a cost model, tokens from their history, no model anywhere."""

import json
from pathlib import Path

import pytest

from shard.engine.sequence import Sequence
from shard.engine.sequence_table import Chunk
from shard.messages import FinishReason, NewSequence, Sampling, ShardConfig, Step, StepOutput, Work
from shard.sim.sim_runner import CostModel, SimRunner

FREE = {"step_ms": 0, "token_ms": 0, "sequence_ms": 0, "context_token_ms": 0}


def runner(folder: Path, kv_cache_bytes: int | None = None, **costs: object) -> SimRunner:
    path = folder / "costs.json"
    path.write_text(json.dumps(FREE | costs))
    return SimRunner(ShardConfig("m", "sim", cost_model=str(path), kv_cache_bytes=kv_cache_bytes))


def generate(runner: SimRunner, new: NewSequence, chunk: int = 1000) -> tuple[list[int], StepOutput]:
    """All tokens of one sequence, and the last output."""
    tokens: list[int] = []
    output = runner.run(Step(1, [Work(new.id, new.attempt, chunk)], [new]))
    while True:
        tokens += [token.id for sequence in output.outputs for token in sequence.tokens]
        if output.num_sequences == 0:
            return tokens, output
        output = runner.run(Step(1, [Work(new.id, new.attempt, chunk)]))


def test_a_step_costs_what_the_model_says() -> None:
    costs = CostModel(step_ms=10, token_ms=1, sequence_ms=0.5, context_token_ms=0.01)
    chunks = [Chunk(Sequence(NewSequence(n, 0, [1] * 100, 100, 5)), 50, 20) for n in range(2)]
    assert costs.duration_ms(chunks) == pytest.approx(10 + 40 + 1 + 1.4)
    assert CostModel(**FREE).duration_ms(chunks) == 0


def test_a_replay_goes_on_with_the_same_tokens(tmp_path: Path) -> None:
    sim = runner(tmp_path)
    tokens, _ = generate(sim, NewSequence(1, 0, [5, 6, 7], 3, 10))
    again, _ = generate(sim, NewSequence(1, 1, [5, 6, 7, *tokens[:4]], 3, 10), chunk=2)
    assert len(tokens) == 10
    assert again == tokens[4:]


def test_the_seed_changes_the_answer(tmp_path: Path) -> None:
    answers = [
        generate(runner(tmp_path), NewSequence(1, 0, [5], 1, 5, False, Sampling(seed=seed)))[0]
        for seed in (1, 2)
    ]
    assert answers[0] != answers[1]


def test_end_tokens_are_drawn_only_when_asked_for(tmp_path: Path) -> None:
    never, last = generate(runner(tmp_path), NewSequence(1, 0, [5], 1, 500))
    assert (len(never), last.outputs[0].finish) == (500, FinishReason.LENGTH)
    short, last = generate(runner(tmp_path, mean_answer_tokens=20), NewSequence(1, 0, [5], 1, 500))
    assert (len(short) < 500, last.outputs[0].finish) == (True, FinishReason.EOS)
    ignoring = NewSequence(1, 0, [5], 1, 500, ignore_eos=True)
    assert len(generate(runner(tmp_path, mean_answer_tokens=20), ignoring)[0]) == 500


def test_every_prompt_token_but_the_first_is_scored_once(tmp_path: Path) -> None:
    sampling = Sampling(prompt_logprobs=True, num_top_tokens=2)
    sim, work = runner(tmp_path), [Work(1, 0, 4)]
    outputs = [sim.run(Step(1, work, [NewSequence(1, 0, list(range(10)), 10, 0, False, sampling)]))]
    outputs += [sim.run(Step(1, work)) for _ in range(2)]
    scores = [score for output in outputs for score in output.outputs[0].prompt]
    assert [score.id for score in scores] == list(range(1, 10))
    assert all(len(score.top) == 2 for score in scores)
    assert (outputs[-1].outputs[0].finish, outputs[-1].num_sequences) == (FinishReason.LENGTH, 0)


def test_memory_bounds_the_longest_sequence(tmp_path: Path) -> None:
    ready = runner(tmp_path, kv_cache_bytes=64 * 1024, kv_bytes_per_token=1024).ready()
    assert (ready.num_blocks, ready.max_total_tokens) == (4, 64)


@pytest.mark.parametrize("content", ["{", '{"step_ms": "x"}', '{"stepms": 1}'])
def test_a_cost_model_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"The cost model .* cannot be read"):
        SimRunner(ShardConfig("m", "sim", cost_model=str(path)))
