"""`helios score`: answers of the full model agree with it, others do not, and files that cannot be scored."""

import json
import math
from pathlib import Path

import msgspec
import pytest

from shard import OfflineEngine
from shard.messages import Sampling
from shard.offline import Answer
from shard.score import command
from tests.shard.driving import generate, make_runner

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3], [40, 41]]
SAMPLED = [Sampling(temperature=0.8, top_k=40, seed=seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def model(tiny_model) -> Path:
    return tiny_model("llama")


def lines_of(runner, sampling=None, **options) -> list[dict]:
    made = generate(runner, PROMPTS, 20, sampling, **options)
    return [
        {
            "prompt_token_ids": prompt,
            "answer": generation.ids,
            "exit_layers": [token.exit_layer for token in generation.tokens],
            "sampling": msgspec.to_builtins((sampling or [Sampling()] * 3)[i]),
        }
        for i, (prompt, generation) in enumerate(zip(PROMPTS, made, strict=True))
    ]


def write(folder: Path, lines: list) -> Path:
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def run(file: Path, model: Path, capsys, *more: str) -> tuple[int, dict, str]:
    """Exit code, the last line, and what was said to a person."""
    flags = ["--model-id", str(model), "--dtype", "float32", "--num-threads", "1", "--device", "cpu"]
    code = command.main([str(file), *flags, *more])
    said = capsys.readouterr()
    return code, json.loads(said.out.splitlines()[-1]) if said.out else {}, said.err


@pytest.mark.parametrize("sampling", [None, SAMPLED], ids=["greedy", "seeded"])
def test_answers_of_the_full_model_agree_with_it(model, tmp_path, capsys, sampling):
    file = write(tmp_path, lines_of(make_runner(model), sampling))
    code, result, said = run(file, model, capsys)
    assert code == 0
    overall = result["answers"]["overall"]
    assert (overall["tokens"], overall["agreeing"], overall["agreement"]) == (60, 60, 1.0)
    assert list(result["answers"]["by_exit"]) == ["4"]
    assert result["answers"]["perplexity"] >= 1
    assert result["bits_per_byte"] > 0
    assert "perplexity" in said


def test_answers_that_left_early_agree_less_and_it_shows_where_they_left(model, tmp_path, capsys):
    leaving = {"exit_mode": "per_row", "exit_layers": [1], "exit_threshold": 0.0, "exit_fallback": False}
    lines = lines_of(make_runner(model, **leaving))
    code, result, _ = run(write(tmp_path, lines), model, capsys)
    assert code == 0
    by_exit = result["answers"]["by_exit"]
    assert sum(share["tokens"] for share in by_exit.values()) == 60
    assert by_exit["1"]["agreement"] < 1.0
    assert by_exit["4"]["agreement"] == 1.0  # first tokens come from the prompt's pass, at full depth


def test_neither_batch_nor_preemption_changes_a_score(model):
    lines = lines_of(make_runner(model))
    answers = [
        Answer(i, line["prompt_token_ids"], line["answer"], 20, [], Sampling())
        for i, line in enumerate(lines, 1)
    ]
    roomy = make_runner(model)
    alone, bits = command.score(OfflineEngine(roomy, 1), answers)
    tight = make_runner(model, kv_cache_bytes=3 * roomy.block_bytes, max_total_tokens=32)
    assert tight.kv_cache.num_blocks == 3
    together, other_bits = command.score(OfflineEngine(tight, 3), answers)
    assert alone.overall == together.overall
    assert other_bits == pytest.approx(bits, abs=1e-4)


def test_text_is_encoded_and_the_load_generators_lines_are_understood(model, tmp_path, capsys):
    lines = [
        {"prompt": "Once upon a time", "answer": " there was"},
        {"prompt": "Once", "text": " upon", "token_ids": [5, 6], "exit_layers": [2, 4], "outcome": "ok"},
        {"prompt": "Once", "text": "", "outcome": "refused", "status": 429},
    ]
    code, result, _ = run(write(tmp_path, lines), model, capsys)
    assert code == 0
    assert result["answers"]["sequences"] == 2
    assert set(result["answers"]["by_exit"]) == {"2", "4"}
    assert math.isfinite(result["bits_per_byte"])


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"answer": "x"}, "Line 1 has no prompt: give `prompt` or `prompt_token_ids`."),
        ({"prompt": "x"}, "Line 1 has no answer: give `answer`, text or token ids."),
        (
            {"prompt": "x", "answer": [5, 6], "exit_layers": [4]},
            "Line 1 has 1 exit_layers for 2 tokens: give the answer as the token ids that were generated.",
        ),
        ({"prompt": "x", "answer": [5, 9999]}, "Line 1 holds token 9999, but the model's are from 0 to 350."),
        (
            {"prompt_token_ids": [5] * 250, "answer": [5] * 10},
            "Line 1 has 260 tokens, prompt and answer together; at most 256 fit.",
        ),
        ({"prompt": 5}, "Expected `str | null`, got `int` - at `$.prompt`."),
    ],
)
def test_a_line_that_cannot_be_scored_is_named_in_one_sentence(model, tmp_path, capsys, line, sentence):
    code, _, said = run(write(tmp_path, [line]), model, capsys)
    assert code == 1
    assert said.startswith("helios score: ")
    assert said.count("\n") == 1
    assert sentence in said


def test_a_file_that_is_not_there_or_empty_and_a_model_that_is_not(model, tmp_path, capsys):
    code, _, said = run(tmp_path / "absent.jsonl", model, capsys)
    assert (code, said.count("\n")) == (1, 1)
    assert "absent.jsonl cannot be read: No such file or directory." in said
    code, _, said = run(write(tmp_path, []), model, capsys)
    assert code == 1
    assert "answers.jsonl holds no answers." in said
    code, _, said = run(write(tmp_path, []), tmp_path / "nothing", capsys)
    assert code == 1
    assert "There is no model at" in said
