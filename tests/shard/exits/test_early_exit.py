"""Early exits keep their promises: full depth stays what it is, and what leaves early leaves alone."""

import itertools
import random
from pathlib import Path

import pytest
import torch

from shard.messages import NewSequence, Sampling, Step, Work
from shard.runner import ModelRunner
from tests.shard.driving import between, generate, kv_bytes, make_runner, num_left_at, prompts_of
from tests.shard.exit_files import write_exits

LAYERS = [1, 2, 3]
CRITERIA = ["softmax", "margin", "similarity", "classifier"]
HEADS = ["norm", "mlp", "block"]
LENGTHS = [3, 17, 40, 64, 9, 33, 5, 21]


@pytest.fixture
def exiting(tiny_model, tmp_path: Path):
    """`exiting(mode, head, shape, **config)` makes a runner with random exits behind layers 1, 2 and 3."""

    def make(mode: str, head: str = "norm", shape: str = "llama", **config) -> ModelRunner:
        model = tiny_model(shape)
        folder = tmp_path / f"{shape}-{head}"
        if not folder.exists():
            write_exits(folder, model, LAYERS, head)
        settings = {"exit_fallback": False, "exits": str(folder), "exit_threshold": 0.5} | config
        return make_runner(model, exit_mode=mode, **settings)

    return make


def splitting_threshold(make, mode: str, **config) -> float:
    """A threshold at which some tokens leave early and some do not: about half of them."""
    runner = make(mode, exit_threshold=0.0, **config)
    made = generate(runner, prompts_of(runner.decoder.shape.vocab_size, LENGTHS), 8)
    return between([t.confidence for g in made for t in g.tokens if t.confidence is not None])


def exit_layers(generations) -> set[int]:
    return {token.exit_layer for generation in generations for token in generation.tokens}


@pytest.mark.parametrize("mode", ["synchronized", "per_row"])
@pytest.mark.parametrize("fill", ["project", "recompute"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_threshold_that_never_fires_equals_full(exiting, tiny_model, mode, fill, head, criterion):
    runner = exiting(mode, head, exit_criterion=criterion, kv_fill=fill, exit_threshold=1.0)
    prompts = prompts_of(runner.decoder.shape.vocab_size, LENGTHS)
    asked = [Sampling(temperature=0.9 * (i % 2), seed=i) for i in range(len(prompts))]
    full = generate(make_runner(tiny_model("llama")), prompts, 12, asked)
    runner.table.plan(Step(0, []))
    made = generate(runner, prompts, 12, asked, exit_threshold=1.0)
    assert [g.ids for g in made] == [g.ids for g in full]
    assert exit_layers(made) == {4}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_rows_leave_alone_whoever_shares_their_batch(exiting, head, criterion):
    """`per_row` with `recompute`: the same text alone, together, in chunks, with waiting and without."""
    config = {"head": head, "exit_criterion": criterion, "kv_fill": "recompute"}
    config["exit_threshold"] = splitting_threshold(exiting, "per_row", **config)
    runner = exiting("per_row", **config)
    prompts = prompts_of(runner.decoder.shape.vocab_size, LENGTHS * 2)
    asked = [Sampling(temperature=0.9 * (i % 2), seed=i) for i in range(len(prompts))]
    together = generate(runner, prompts, 16, asked)
    assert len(exit_layers(together)) >= 2
    for i in range(0, len(prompts), 5):
        alone = generate(runner, prompts[i : i + 1], 16, asked[i : i + 1])[0]
        assert [(t.id, t.exit_layer) for t in alone.tokens] == [
            (t.id, t.exit_layer) for t in together[i].tokens
        ]
    at_once = generate(exiting("per_row", exit_deferral=False, **config), prompts, 16, asked, chunk=11)
    assert [g.ids for g in at_once] == [g.ids for g in together]


@pytest.mark.parametrize("fill", ["project", "recompute"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_alone_synchronized_is_per_row(exiting, head, criterion, fill):
    config = {"head": head, "exit_criterion": criterion, "kv_fill": fill}
    config["exit_threshold"] = splitting_threshold(exiting, "per_row", **config)
    synchronized, other = exiting("synchronized", **config), exiting("per_row", **config)
    for prompt in prompts_of(synchronized.decoder.shape.vocab_size, [5, 30]):
        a, b = generate(synchronized, [prompt], 20)[0], generate(other, [prompt], 20)[0]
        assert [(t.id, t.exit_layer) for t in a.tokens] == [(t.id, t.exit_layer) for t in b.tokens]


@pytest.mark.parametrize("mode", ["synchronized", "per_row"])
@pytest.mark.parametrize("turns", [False, True], ids=["exits on", "exits on and off"])
def test_kv_under_recompute_is_a_full_forwards(exiting, tiny_model, mode, turns):
    """After any history of exits, in every layer, for every token that has come so far."""
    threshold = splitting_threshold(exiting, "per_row")
    runner = exiting(mode, kv_fill="recompute", exit_threshold=threshold)
    if turns:
        asked = itertools.count()
        runner.exiting.fallback.wants_exits = lambda num_rows: next(asked) // 3 % 2 == 0
    prompts = prompts_of(runner.decoder.shape.vocab_size, [20, 7, 33, 12])
    new = [NewSequence(i, 0, p, len(p), 64, ignore_eos=True) for i, p in enumerate(prompts)]
    work = [Work(i, 0, 64) for i in range(len(prompts))]
    left = set()
    for number in range(40):
        output = runner.run(Step(number, work, new if number == 0 else []))
        left |= {token.exit_layer for part in output.outputs for token in part.tokens}
    assert len(left) >= 2
    reference = make_runner(tiny_model("llama"))
    for sequence in runner.table.sequences.values():
        again = NewSequence(9, 0, sequence.token_ids, len(sequence.token_ids), 1)
        reference.run(Step(number, [Work(9, 0, 512)], [again]))
        reference.table.sequences.clear()
        compare_kv(runner, sequence, reference)
        reference = make_runner(tiny_model("llama"))


def compare_kv(runner: ModelRunner, sequence, reference: ModelRunner) -> None:
    """Every layer's keys and values, as far as each layer was run."""
    num_tokens = sequence.num_computed_tokens
    skipped, bounds = 0, [0, *LAYERS, 4]
    blocks = torch.tensor(sequence.blocks)
    first = torch.arange(-(-num_tokens // 16))
    fresh = reference.table.pool.num_blocks
    assert fresh >= len(first)
    for segment in range(4):
        skipped += num_left_at(sequence, segment)
        known = num_tokens - skipped
        for layer in range(bounds[segment], bounds[segment + 1]):
            ours = runner.ops.read(runner.kv_cache.layers[layer], blocks, known, 16)
            theirs = reference.ops.read(reference.kv_cache.layers[layer], first, known, 16)
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", ["llama3-rope", "mistral", "qwen2", "qwen3", "opt", "gpt2"])
@pytest.mark.parametrize(("mode", "fill"), [("per_row", "recompute"), ("synchronized", "project")])
def test_every_family_leaves_early(exiting, shape, mode, fill):
    config = {"shape": shape, "head": "block", "kv_fill": fill}
    config["exit_threshold"] = splitting_threshold(exiting, mode, **config)
    runner = exiting(mode, **config)
    prompts = prompts_of(runner.decoder.shape.vocab_size, LENGTHS[:3])
    made = generate(runner, prompts, 16)
    assert exit_layers(made) - {4}
    assert all(len(generation.ids) == 16 for generation in made)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_capped_takes_every_token_at_the_cap_and_counts_breaches(exiting, head, criterion):
    runner = exiting("capped", head, exit_criterion=criterion, num_layers=2, exit_threshold=0.999999)
    assert runner.depth == 2
    assert len(runner.kv_cache.layers) == (3 if head == "block" else 2)
    prompt = prompts_of(runner.decoder.shape.vocab_size, [12])[0]
    output = runner.run(Step(0, [Work(0, 0, 64)], [NewSequence(0, 0, prompt, 12, 4, ignore_eos=True)]))
    token = output.outputs[0].tokens[0]
    assert token.exit_layer == 2
    assert output.exits.tokens_by_exit == {2: 1}
    assert output.exits.breaches == int(token.confidence < 0.999999)
    assert 0 <= token.confidence <= 1


def test_capped_does_not_depend_on_the_batch(exiting):
    runner = exiting("capped", "block", num_layers=2)
    prompts = prompts_of(runner.decoder.shape.vocab_size, LENGTHS)
    together = generate(runner, prompts, 12)
    for prompt, made in zip(prompts, together, strict=True):
        assert generate(runner, [prompt], 12, chunk=7)[0].ids == made.ids


@pytest.mark.parametrize("mode", ["synchronized", "per_row"])
def test_exact_rows_are_exact_in_any_company(exiting, tiny_model, mode):
    runner = exiting(mode, kv_fill="recompute", exit_threshold=0.0)
    prompts = prompts_of(runner.decoder.shape.vocab_size, LENGTHS)
    full = generate(make_runner(tiny_model("llama")), prompts, 12)
    made = generate(runner, prompts, 12, exact=[i % 2 == 0 for i in range(len(prompts))])
    for i in range(0, len(prompts), 2):
        assert made[i].ids == full[i].ids
    if mode == "per_row":
        assert exit_layers(made[1::2]) - {4}


def test_synchronized_takes_every_token_where_the_batch_leaves(exiting):
    threshold = splitting_threshold(exiting, "per_row")
    runner = exiting("synchronized", exit_threshold=threshold)
    prompts = prompts_of(runner.decoder.shape.vocab_size, [8, 8, 8, 8])
    new = [NewSequence(i, 0, p, len(p), 40, ignore_eos=True) for i, p in enumerate(prompts)]
    runner.run(Step(0, [Work(i, 0, 64) for i in range(4)], new))
    for number in range(1, 30):
        output = runner.run(Step(number, [Work(i, 0, 1) for i in range(4)]))
        assert len({part.tokens[0].exit_layer for part in output.outputs}) == 1


@pytest.mark.parametrize("fill", ["project", "recompute"])
def test_preemption_and_abort_in_mid_flight(exiting, tiny_model, fill):
    """Under `recompute` a preempted sequence ends with the same text; under `project` it ends."""
    threshold = splitting_threshold(exiting, "per_row")
    config = {"exit_threshold": threshold, "kv_fill": fill, "max_total_tokens": 160}
    prompts = prompts_of(259, [30, 40, 50, 60])
    tight = exiting("per_row", kv_cache_bytes=kv_bytes(12, tiny_model("llama")), **config)
    made = generate(tight, prompts, 40)
    assert sum(generation.num_preemptions for generation in made) > 0
    assert all(len(generation.ids) == 40 for generation in made)
    if fill == "recompute":
        assert [g.ids for g in made] == [g.ids for g in generate(exiting("per_row", **config), prompts, 40)]
    draw = random.Random(3)
    live = dict.fromkeys(range(10, 16))
    new = [NewSequence(i, 0, prompts[i % 4], len(prompts[i % 4]), 30, ignore_eos=True) for i in live]
    for number in range(200):
        drops = [(i, 0) for i in list(live) if draw.random() < 0.05]
        output = tight.run(Step(number, [Work(i, 0, 20) for i in live], new if number == 0 else [], drops))
        for id in [id for id, _ in drops + output.preempted] + [o.id for o in output.outputs if o.finish]:
            live.pop(id, None)
    assert not live
    assert tight.table.pool.num_free == tight.table.pool.num_blocks


def test_a_waiting_row_is_not_kept_waiting_for_ever(exiting):
    threshold = splitting_threshold(exiting, "per_row")
    runner = exiting("per_row", exit_threshold=threshold)
    runner.exiting.deferral.wanted = lambda num_rows: 1e9  # would wait for ever
    prompts = prompts_of(runner.decoder.shape.vocab_size, LENGTHS)
    made = generate(runner, prompts, 24)
    assert all(len(generation.ids) == 24 for generation in made)
    assert 4 in exit_layers(made)


@pytest.mark.parametrize(
    ("config", "thresholds"),
    [({}, {1: 0.5, 2: 0.5, 3: 0.5}), ({"num_layers": 3}, {1: 0.5, 2: 0.5})],
)
def test_thresholds_of_exits_in_use_are_told(exiting, config, thresholds):
    assert exiting("per_row", **config).ready().exit_thresholds == thresholds
    assert exiting("speculative", **config).ready().exit_thresholds == {}
