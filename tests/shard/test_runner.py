"""The engine gives what `transformers` gives, whatever the batch, chunks, preemptions and depth."""

import json
from pathlib import Path

import pytest
import torch

from shard.messages import Sampling
from shard.models.checkpoint import CheckpointError
from shard.models.shape import UnsupportedModelError
from tests.shard.driving import generate, kv_bytes, load_reference, make_runner, prompts_of, score

TIE = 1e-4  # where the reference's two best logits are closer than this, either token is right


@torch.inference_mode()
def assert_greedy(
    model: torch.nn.Module, prompt: list[int], ids: list[int], logprobs: list[float], within: float = 1e-3
) -> None:
    """Each token is the reference's choice after the tokens before it, with its log-probability.

    One forward over the whole text asks the same as generating token by token, as long as no token differs.
    """
    logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float()
    best = logits.topk(2).values
    for at, (row, id) in enumerate(zip(logits, ids, strict=True)):
        tied = best[at, 0] - best[at, 1] < TIE
        assert row.argmax().item() == id or tied, f"token {at}: {id}, not {row.argmax().item()}"
    expected = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(logprobs), expected, atol=within, rtol=0)


@pytest.mark.parametrize("block_size", [16, 32])
def test_greedy_equals_transformers_for_every_family(every_tiny_model: Path, block_size: int):
    model = load_reference(every_tiny_model)
    prompts = prompts_of(model.config.vocab_size, [1, 5, 16, 33, 70, 100])
    runner = make_runner(every_tiny_model, block_size=block_size)
    for prompt, made in zip(prompts, generate(runner, prompts, 20), strict=True):
        assert_greedy(model, prompt, made.ids, [token.logprob for token in made.tokens])
        reference = model.generate(
            torch.tensor([prompt]), max_new_tokens=20, min_new_tokens=20, do_sample=False, eos_token_id=None
        )
        assert made.ids == reference[0, len(prompt) :].tolist()


def test_a_sequence_alone_in_chunks_and_in_a_batch_is_the_same(every_tiny_model: Path):
    runner = make_runner(every_tiny_model)
    prompts = prompts_of(runner.decoder.shape.vocab_size, [3, 17, 40, 64, 90, 8, 21, 55])
    together = generate(runner, prompts, 16)
    for prompt, made in zip(prompts, together, strict=True):
        assert generate(runner, [prompt], 16)[0].ids == made.ids
        assert generate(runner, [prompt], 16, chunk=7)[0].ids == made.ids


def test_preempted_sequences_end_with_the_same_text(tiny_model):
    folder = tiny_model("llama")
    roomy = make_runner(folder)
    prompts = prompts_of(roomy.decoder.shape.vocab_size, [30, 40, 50, 60])
    sampling = [Sampling(temperature=0.8 * (i % 2), seed=i) for i in range(4)]
    tight = make_runner(folder, kv_cache_bytes=kv_bytes(12, folder), max_total_tokens=160)
    assert tight.kv_cache.num_blocks < 16
    expected = generate(roomy, prompts, 40, sampling)
    made = generate(tight, prompts, 40, sampling)
    assert sum(generation.num_preemptions for generation in made) > 0
    assert [generation.ids for generation in made] == [generation.ids for generation in expected]


@pytest.mark.parametrize("shape", ["qwen3", "opt", "gpt2"])
def test_the_first_layers_alone_are_the_truncated_model(tiny_model, shape: str):
    folder = tiny_model(shape)
    runner = make_runner(folder, num_layers=2)
    prompts = prompts_of(runner.decoder.shape.vocab_size, [10, 30])
    model = load_reference(folder, num_layers=2)
    for prompt, made in zip(prompts, generate(runner, prompts, 8), strict=True):
        assert_greedy(model, prompt, made.ids, [token.logprob for token in made.tokens])
    assert runner.ready().depth == 2
    assert all(token.exit_layer == 2 for token in made.tokens)


def test_mistrals_window_hides_what_is_out_of_it(tmp_path: Path):
    from tests.tiny_models import write_tiny_model

    folder = write_tiny_model(tmp_path / "windowed", "mistral", sliding_window=24)
    runner = make_runner(folder)
    model = load_reference(folder)
    for prompt in prompts_of(runner.decoder.shape.vocab_size, [10, 60, 120]):
        made = generate(runner, [prompt], 20)[0]
        assert_greedy(model, prompt, made.ids, [token.logprob for token in made.tokens])


def test_prompt_scores_are_the_references_in_any_chunks(tiny_model):
    folder = tiny_model("qwen2")
    runner = make_runner(folder)
    prompt = prompts_of(runner.decoder.shape.vocab_size, [70])[0]
    logits = load_reference(folder)(torch.tensor([prompt])).logits[0].float()
    expected = torch.log_softmax(logits, dim=-1)[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    for chunk in (512, 9):
        asked = [Sampling(prompt_logprobs=True, num_top_tokens=2)]
        scored = generate(runner, [prompt], 0, asked, chunk)[0]
        assert scored.ids == [] and scored.finish == "length"
        assert [token.id for token in scored.prompt] == prompt[1:]
        torch.testing.assert_close(
            torch.tensor([token.logprob for token in scored.prompt]), expected.detach(), atol=1e-3, rtol=0
        )
        assert all(len(token.top) == 2 for token in scored.prompt)


def test_an_end_token_ends_a_sequence_unless_it_is_ignored(tiny_model):
    runner = make_runner(tiny_model("llama"))
    prompt = prompts_of(runner.decoder.shape.vocab_size, [12])[0]
    free = generate(runner, [prompt], 10)[0]
    runner.table.eos_token_ids = frozenset([free.ids[4]])
    first = free.ids.index(free.ids[4]) + 1
    ended = generate(runner, [prompt], 10, ignore_eos=False)[0]
    assert (ended.ids, ended.finish) == (free.ids[:first], "eos_token")
    assert generate(runner, [prompt], 10)[0].ids == free.ids


@pytest.mark.parametrize(("quantize", "within"), [("none", 1e-3), ("auto", 1e-2)])
def test_smollm2_equals_what_transformers_reads_in_its_gguf_file(
    embedded_model: Path, quantize: str, within: float
):
    """Matrices as float32, and as the blocks of the file, by which activations are rounded to 16 bits."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(embedded_model / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in REAL_PROMPTS]
    runner = make_runner(embedded_model, kv_cache_bytes=1 << 28, quantize=quantize)
    made = generate(runner, prompts, 12)
    model = load_reference(embedded_model, gguf_file="model.gguf")
    for prompt, generation in zip(prompts, made, strict=True):
        logprobs = [token.logprob for token in generation.tokens]
        assert_greedy(model, prompt, generation.ids, logprobs, within)


def test_a_missing_or_misshapen_tensor_is_named(tiny_model, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    folder.mkdir()
    for path in tiny_model("qwen3").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*missing"):
        make_runner(folder)
    save_file(tensors | {"model.norm.weight": norm[:3].clone()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*shape \(3,\), not \(64,\)"):
        make_runner(folder)


@pytest.mark.parametrize(
    ("shape", "change", "complaint"),
    [
        ("qwen3", {"model_type": "bloom"}, "bloom"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        ("opt", {"do_layer_norm_before": False}, "OPT"),
    ],
)
def test_what_has_no_decoder_is_refused_by_name(tiny_model, tmp_path: Path, shape, change, complaint):
    folder = tmp_path / "other"
    folder.mkdir()
    for path in tiny_model(shape).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UnsupportedModelError, match=complaint):
        make_runner(folder)


def test_a_depth_out_of_range_and_a_cache_too_small_are_refused(tiny_model):
    with pytest.raises(ValueError, match="between 1 and 4, not 5"):
        make_runner(tiny_model("llama"), num_layers=5)
    with pytest.raises(MemoryError, match="holds no block"):
        make_runner(tiny_model("llama"), kv_cache_bytes=100)


REAL_PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at a temperature of",
    "To make a good cup of tea, first",
    "The three primary colours are",
    "In 1969, the first people to walk on the Moon",
    "A list of European countries: France, Germany,",
    "SELECT name, age FROM",
    "The opposite of hot is",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: What is the largest planet?\nA:",
    "The sum of two and two is",
    "import numpy as np\n\nx = np.",
    "It was a dark and stormy night;",
    "Translate to French: good morning ->",
    "The human heart has four",
    "Photosynthesis is the process by which",
    "1, 1, 2, 3, 5, 8,",
    "The best way to learn a language is",
    "Roses are red, violets are",
    "La capitale de l'Italie est",
]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_full_depth_agrees_with_its_own_answers_and_scores_them(tiny_model, temperature: float):
    runner = make_runner(tiny_model("qwen2"))
    prompts = prompts_of(runner.decoder.shape.vocab_size, [5, 40])
    asked = Sampling(temperature=temperature, seed=11, top_p=0.9, presence_penalty=0.2)
    for prompt, made in zip(prompts, generate(runner, prompts, 30, [asked, asked]), strict=True):
        scores = score(runner, prompt, made.ids, asked, chunk=9)
        assert [each.choice for each in scores] == made.ids
        expected = torch.tensor([token.logprob for token in made.tokens])
        torch.testing.assert_close(
            torch.tensor([each.logprob for each in scores]), expected, atol=1e-3, rtol=0
        )


def test_scores_tell_where_an_answer_is_not_full_depths(tiny_model):
    runner = make_runner(tiny_model("llama"))
    prompt = prompts_of(runner.decoder.shape.vocab_size, [12])[0]
    answer = generate(runner, [prompt], 20)[0].ids
    changed = [*answer[:7], (answer[7] + 1) % 200, *answer[8:]]
    agrees = [each.choice == id for each, id in zip(score(runner, prompt, changed), changed, strict=True)]
    assert agrees[:8] == [True] * 7 + [False]
