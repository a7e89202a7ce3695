"""`speculative` says what `full` says, token for token, and drafts what will be accepted."""

from pathlib import Path

import pytest
import torch

from shard.exits.draft_planner import Acceptance, Costs, Plan, plan_round
from shard.messages import NewSequence, Sampling, Step, Work
from tests.shard.driving import generate, kv_bytes, make_runner, prompts_of
from tests.shard.exit_files import write_exits

LENGTHS = [3, 17, 40, 64, 9, 33, 5, 21, 2, 80, 13, 28, 30, 6, 50, 11]


def drafting(folder: Path, **config):
    return make_runner(folder, exit_mode="speculative", exit_fallback=False, **config)


@pytest.fixture(scope="module")
def agreeing_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose deep layers change little, so that its exits mostly say what its end says."""
    from safetensors.torch import load_file, save_file

    from tests.tiny_models import write_tiny_model

    folder = write_tiny_model(tmp_path_factory.mktemp("agreeing") / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.startswith(("model.layers.2.", "model.layers.3.")) and "norm" not in name:
            tensors[name] = tensors[name] * 0.3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_output_is_fulls_for_every_family(every_tiny_model: Path, temperature: float):
    full = make_runner(every_tiny_model)
    prompts = prompts_of(full.decoder.shape.vocab_size, LENGTHS)
    asked = [
        Sampling(temperature=temperature, seed=i, top_p=0.9 if i % 3 else 1.0, presence_penalty=0.3 * (i % 2))
        for i in range(len(prompts))
    ]
    expected = generate(full, prompts, 20, asked)
    made = generate(drafting(every_tiny_model, exit_layers=[1, 2]), prompts, 20, asked)
    assert [g.ids for g in made] == [g.ids for g in expected]


@pytest.mark.parametrize("head", ["mlp", "block"])
@pytest.mark.parametrize("fill", ["recompute", "project"])  # either way, drafts are what verification reads
def test_trained_heads_draft_too(tiny_model, tmp_path: Path, head: str, fill: str):
    folder = tiny_model("qwen3")
    exits = write_exits(tmp_path / "exits", folder, [1, 3], head)
    prompts = prompts_of(259, LENGTHS[:6])
    made = generate(drafting(folder, exits=str(exits), kv_fill=fill), prompts, 16)
    assert [g.ids for g in made] == [g.ids for g in generate(make_runner(folder), prompts, 16)]


def test_output_is_that_of_transformers_drafting_at_the_same_exit(agreeing_model: Path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(agreeing_model, dtype=torch.float32).eval()
    runner = drafting(agreeing_model, exit_layers=[2])
    for prompt in prompts_of(model.config.vocab_size, [5, 20, 60]):
        reference = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=24,
            min_new_tokens=24,
            do_sample=False,
            assistant_early_exit=2,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert generate(runner, [prompt], 24)[0].ids == reference[0, len(prompt) :].tolist()


def test_accepted_drafts_make_steps_fewer(agreeing_model: Path):
    runner = drafting(agreeing_model, exit_layers=[2])
    runner.exiting.costs = Costs([1.0], [4.0], [0.1])
    prompts = prompts_of(runner.decoder.shape.vocab_size, [10, 25, 4])
    new = [NewSequence(i, 0, p, len(p), 60, ignore_eos=True) for i, p in enumerate(prompts)]
    number = drafted = accepted = num_tokens = 0
    while len(runner.table) or number == 0:
        output = runner.run(Step(number, [Work(i, 0, 64) for i in range(3)], new if number == 0 else []))
        number += 1
        drafted, accepted = drafted + output.exits.drafted, accepted + output.exits.accepted
        num_tokens += sum(len(part.tokens) for part in output.outputs)
    assert num_tokens == 180
    assert accepted > 0.5 * drafted > 0
    assert number < 50


def test_an_answer_ends_where_fulls_ends(agreeing_model: Path):
    full, runner = make_runner(agreeing_model), drafting(agreeing_model, exit_layers=[2])
    prompts = prompts_of(full.decoder.shape.vocab_size, LENGTHS[:6])
    free = generate(full, prompts, 30)
    for engine in (full, runner):
        engine.table.eos_token_ids = frozenset(generation.ids[7] for generation in free)
    expected = generate(full, prompts, 30, ignore_eos=False)
    made = generate(runner, prompts, 30, ignore_eos=False)
    assert [(g.ids, g.finish) for g in made] == [(g.ids, g.finish) for g in expected]


def test_preemption_in_mid_flight_changes_nothing(agreeing_model: Path):
    prompts = prompts_of(259, [30, 40, 50, 60])
    config = {"exit_layers": [2], "max_total_tokens": 160}
    tight = drafting(agreeing_model, kv_cache_bytes=kv_bytes(12, agreeing_model), **config)
    made = generate(tight, prompts, 40)
    assert sum(generation.num_preemptions for generation in made) > 0
    assert [g.ids for g in made] == [g.ids for g in generate(make_runner(agreeing_model), prompts, 40)]


def test_where_drafts_fail_none_are_made():
    costs = Costs([1.0], [3.0], [0.2])
    assert plan_round(Acceptance([0.0]), costs, 8) == Plan(0, 1)
    assert plan_round(Acceptance([0.95]), costs, 8).num_passes == 8
    assert plan_round(Acceptance([0.95]), costs, 3).num_passes == 3


def test_a_deeper_exit_is_taken_when_it_is_accepted_enough_more():
    costs = Costs([1.0, 2.0], [3.0, 2.0], [0.2, 0.2])
    assert plan_round(Acceptance([0.8, 0.82]), costs, 8).exit_index == 0
    assert plan_round(Acceptance([0.2, 0.95]), costs, 8).exit_index == 1


def test_acceptance_learns_only_from_drafts_that_were_tried():
    acceptance = Acceptance([0.5])
    acceptance.note(0, drafted=4, accepted=0)
    assert acceptance.rates[0] == pytest.approx(0.45)
    acceptance.note(0, drafted=2, accepted=2)
    assert acceptance.rates[0] == pytest.approx(1 - 0.55 * 0.81)
