"""The engine from Python: what a router would have got, whatever the batch, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from shard import OfflineEngine
from shard.messages import FinishReason, NewSequence, Sampling
from shard.models.model_folder import ModelUnusable
from shard.models.text import read_tokenizer
from shard.offline import Answer
from tests.shard.driving import DEVICE, generate, make_runner

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3], [40, 41], list(range(3, 60))]
SAMPLED = [Sampling(temperature=0.8, seed=seed) for seed in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def model(tiny_model) -> Path:
    return tiny_model("llama")


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_tokens_are_those_of_a_router(model, batch_size):
    expected = generate(make_runner(model), PROMPTS, 20, SAMPLED, ignore_eos=False)
    engine = OfflineEngine(make_runner(model), batch_size)
    made = engine.generate(PROMPTS, 20, SAMPLED)
    assert [[token.id for token in completion.tokens] for completion in made] == [
        completion.ids for completion in expected
    ]
    assert [completion.finish_reason for completion in made] == [completion.finish for completion in expected]
    assert engine.runner.table.pool.num_free == engine.runner.table.pool.num_blocks


def test_who_is_preempted_ends_with_the_same_tokens_and_scores(model):
    roomy = make_runner(model)
    tight = make_runner(model, kv_cache_bytes=6 * roomy.block_bytes, max_total_tokens=96)
    engine = OfflineEngine(tight, 4)
    made = engine.generate(PROMPTS, 30, SAMPLED)
    assert engine.num_preemptions > 0
    for ours, theirs in zip(made, OfflineEngine(roomy, 4).generate(PROMPTS, 30, SAMPLED), strict=True):
        assert [token.id for token in ours.tokens] == [token.id for token in theirs.tokens]
        logprobs = [token.logprob for token in theirs.tokens]
        assert [token.logprob for token in ours.tokens] == pytest.approx(logprobs, abs=1e-3)
    answers = [
        Answer(number, prompt, [token.id for token in completion.tokens], 0, [], sampling)
        for number, (prompt, completion, sampling) in enumerate(zip(PROMPTS, made, SAMPLED, strict=True))
    ]
    read = {answer.number: [score.choice for score in scores] for answer, scores in engine.score(answers)}
    assert read == {answer.number: answer.token_ids for answer in answers}


def test_long_prompts_take_several_steps(model):
    prompt = [(7 * i) % 90 + 3 for i in range(100)]
    engine = OfflineEngine(make_runner(model), 32)
    made = engine.generate([prompt] * 12, 4)
    assert len({tuple(token.id for token in completion.tokens) for completion in made}) == 1
    assert all(
        len(completion.tokens) == 4 and completion.finish_reason is FinishReason.LENGTH for completion in made
    )


def test_text_goes_in_and_comes_out(model):
    engine = OfflineEngine.load(
        str(model), device=DEVICE, dtype="float32", num_threads=1, kv_cache_bytes=1 << 24
    )
    (completion,) = engine.generate(["hello"], 8, exact=True)
    assert completion.text
    with pytest.raises(ValueError, match="Text needs a tokenizer"):
        OfflineEngine(engine.runner).generate(["hello"])


def test_what_cannot_be_held_is_refused_before_it_runs(model):
    engine = OfflineEngine(make_runner(model, max_total_tokens=32))
    for prompt, bound in (([], 1), ([5] * 32, 1), ([5, 10**6], 0), ([-1], 0)):
        with pytest.raises(ValueError, match=f"between {bound} and"):
            engine.generate([prompt], 4)
    with pytest.raises(ValueError, match="between 1 and 32"):
        engine.add(NewSequence(0, 0, [5] * 33, 33, 0))
    assert not engine.has_unfinished


def test_all_can_be_forgotten(model):
    engine = OfflineEngine(make_runner(model), 2)
    for number, prompt in enumerate(PROMPTS):
        engine.add(NewSequence(number, 0, prompt, len(prompt), 50))
    engine.step()
    engine.abort_all()
    assert not engine.has_unfinished
    assert engine.runner.table.pool.num_free == engine.runner.table.pool.num_blocks


def test_text_is_split_as_all_files_of_the_folder_say(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "changed")
    described = json.loads((folder / "tokenizer_config.json").read_text())
    described |= {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": True,
        "extra_special_tokens": ["q"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    expected = AutoTokenizer.from_pretrained(folder).encode("the quick")
    engine = OfflineEngine.load(
        str(folder), device=DEVICE, dtype="float32", num_threads=1, kv_cache_bytes=1 << 24
    )
    assert engine.generate(["the quick"], 1)[0].tokens == engine.generate([expected], 1)[0].tokens
    assert read_tokenizer(folder).encode("the quick").ids == expected
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("the quick").ids != expected
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelUnusable, match=r"The tokenizer in .* cannot be read"):
        read_tokenizer(folder)
