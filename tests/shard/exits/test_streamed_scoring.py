"""A shard without its deep layers says what all layers would choose, in a share of its time."""

import gc
import weakref
from pathlib import Path

import pytest

from shard.messages import NewSequence, Score, Step, Work
from shard.models.load import MissingLayers
from shard.runner import ModelRunner
from tests.shard.driving import SAMPLED, generate, make_runner, prompts_of, score, scored
from tests.tiny_models import write_tiny_model


def capped(folder: Path, num_layers: int = 1, **config) -> ModelRunner:
    return make_runner(folder, exit_mode="capped", num_layers=num_layers, exit_layers=[num_layers], **config)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_scores_are_those_of_all_layers(every_tiny_model: Path, num_layers: int):
    full, shallow = make_runner(every_tiny_model), capped(every_tiny_model, num_layers)
    assert shallow.ready().can_score
    prompt, answer = prompts_of(full.decoder.shape.vocab_size, [140, 70])
    expected = score(full, prompt, answer, SAMPLED)
    for chunk in (512, 37):
        made = scored(shallow, prompt, answer, chunk)
        assert [each.choice for each in made] == [each.choice for each in expected]
        assert [each.logprob for each in made] == pytest.approx([e.logprob for e in expected], abs=1e-3)


@pytest.fixture
def layers_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Each layer read, and how many of those read before were alive then."""
    noted: list[tuple[int, int]] = []
    alive: list[weakref.ref] = []
    read = MissingLayers.read

    def noting(self: MissingLayers, index: int):
        noted.append((index, sum(layer() is not None for layer in alive)))
        decoder = read(self, index)
        alive.append(weakref.ref(decoder.layers[0].qkv))
        return decoder

    monkeypatch.setattr(MissingLayers, "read", noting)
    return noted


def test_one_missing_layer_is_in_memory_at_a_time(tiny_model, layers_read):
    runner = capped(tiny_model("llama"))
    gc.disable()  # nothing may wait for it
    try:
        scored(runner, *prompts_of(300, [20, 10]))
        scored(runner, *prompts_of(300, [200, 30]))
    finally:
        gc.enable()
    assert layers_read == [(1, 0), (2, 0), (3, 0)] * 2


def test_beside_others_it_takes_its_share_of_the_time_and_changes_nothing(tiny_model, monkeypatch):
    """By a clock of which each step takes 100 ms and each piece 10: one piece in five steps at 2%."""
    model = tiny_model("llama")
    prompts = prompts_of(300, [12, 30, 20, 10])
    plain = generate(capped(model), prompts[:2], 90)
    runner = capped(model, score_budget=0.02)
    streamed = runner.streamed
    advance, earn = streamed.advance, streamed.earn
    pieces: list[int] = []

    def ten_ms(reading) -> float:
        pieces.append(number)
        advance(reading)
        return 10.0

    monkeypatch.setattr(streamed, "advance", ten_ms)
    monkeypatch.setattr(streamed, "earn", lambda ms: earn(100.0))
    new = [NewSequence(i, 0, p, len(p), 90, ignore_eos=True) for i, p in enumerate(prompts[:2])]
    reading = NewSequence(99, 0, prompts[2] + prompts[3], len(prompts[2]), 0, scores=True)
    said: dict[int, list[int]] = {0: [], 1: []}
    scores: list[Score] = []
    for number in range(92):
        begun = [*(new if number == 0 else []), *([reading] if number == 5 else [])]
        work = [Work(0, 0, 64), Work(1, 0, 64), Work(99, 0, 64)]
        for made in runner.run(Step(number, work, begun)).outputs:
            if made.id == 99:
                scores += made.scores
            else:
                said[made.id] += [token.id for token in made.tokens]
    assert [said[0], said[1]] == [generation.ids for generation in plain]
    assert [each.choice for each in scores] == [
        each.choice for each in score(make_runner(model), prompts[2], prompts[3])
    ]
    assert pieces == [6, 10, 15, 20, 25]  # three layers, the head, the end: five steps pay for ten ms


def test_one_that_is_dropped_or_preempted_is_forgotten(tiny_model, layers_read):
    runner = capped(tiny_model("llama"))
    prompt, answer = prompts_of(300, [30, 20])
    new = NewSequence(7, 0, prompt + answer, len(prompt), 0, scores=True)
    runner.run(Step(0, [Work(7, 0, 512)], [new]))
    runner.run(Step(1, [Work(7, 0, 512)]))
    runner.run(Step(2, [Work(7, 0, 512)], drop=[(7, 0)]))
    assert len(layers_read) == 1
    assert runner.table.pool.num_free == runner.table.pool.num_blocks
    assert runner.run(Step(3, [Work(7, 0, 512)])).outputs == []
    assert len(layers_read) == 1


def test_one_whose_files_have_changed_ends_without_scores(tmp_path: Path, caplog):
    folder = write_tiny_model(tmp_path / "model", "llama")
    runner = capped(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")
    assert scored(runner, *prompts_of(300, [20, 10])) == []
    assert "has changed since its first layers were loaded" in caplog.text
    assert len(generate(runner, prompts_of(300, [20]), 5)[0].ids) == 5


def test_without_a_budget_a_shallow_shard_does_not_score(tiny_model):
    assert not capped(tiny_model("llama"), score_budget=0.0).ready().can_score
    assert make_runner(tiny_model("llama"), score_budget=0.0).ready().can_score
