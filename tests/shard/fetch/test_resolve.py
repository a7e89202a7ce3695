"""From a model's name to a complete folder, the user's own folder untouched, or one sentence."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from shard.fetch.resolve import resolve, shrink_tokenizer
from shard.models.model_folder import ModelUnusable, is_complete
from tests.running import ROOT
from tests.shard.gguf_files import write_gguf

WITHOUT_TORCH = """
import sys
from pathlib import Path
from shard.fetch.resolve import resolve

print(resolve(sys.argv[1], None, Path(sys.argv[2])))
print([name for name in ("torch", "transformers", "huggingface_hub") if name in sys.modules])
"""


@pytest.fixture(autouse=True)
def quiet():
    logging.disable_progress_bar()


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of a complete folder, to take things away from."""
    return shutil.copytree(tiny_model("gpt2"), tmp_path / "model")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def logits_of(folder):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(torch.arange(5, 45)[None]).logits


def listing(folder):
    return sorted((path.name, path.stat().st_size) for path in folder.iterdir())


def test_a_complete_folder_is_itself(folder, cache):
    assert resolve(str(folder), None, cache) == folder
    assert not cache.exists()


def test_a_complete_folder_is_found_without_loading_torch(folder, cache):
    command = [sys.executable, "-c", WITHOUT_TORCH, str(folder), str(cache)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines() == [str(folder), "[]"]


@pytest.mark.parametrize("name", ["embedded", "smollm2-135m-instruct"])
def test_the_embedded_model_has_a_name(embedded_model, name):
    assert resolve(name, None, embedded_model.parent.parent) == embedded_model


def test_what_a_folder_lacks_is_made_in_the_cache_once(folder, cache):
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    before = listing(folder)
    made = resolve(str(folder), None, cache)
    assert is_complete(made)
    assert cache in made.parents
    assert listing(folder) == before
    assert torch.equal(logits_of(made), logits_of(folder))
    assert AutoTokenizer.from_pretrained(made).chat_template is not None
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    assert resolve(str(folder), None, cache) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_folder_that_changed_is_made_anew(folder, cache):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    made = resolve(str(folder), None, cache)
    assert is_complete(made)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{' '.join(tokenizer['model']['merges'][0])}\n")
    assert resolve(str(folder), None, cache) != made


def test_a_gguf_file_or_a_folder_of_one_is_converted_once(tiny_model, cache, tmp_path):
    file = write_gguf(tiny_model("llama"), tmp_path / "tiny.Q8.gguf")
    made = resolve(str(file), None, cache)
    assert is_complete(made)
    assert resolve(str(tmp_path), None, cache) == made


def refusal(model_id, cache):
    with pytest.raises(ModelUnusable) as caught:
        resolve(str(model_id), None, cache)
    return str(caught.value)


def test_several_gguf_files_are_named(tmp_path, cache):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    assert refusal(tmp_path, cache) == f"{tmp_path} holds several .gguf files: name one of a.gguf, b.gguf."


def test_an_unsupported_architecture_names_the_supported_ones(folder, cache):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    assert refusal(folder, cache) == (
        f"{folder} is of architecture 'mamba', which is not supported: choose a model of "
        "llama, mistral, qwen2, qwen3, opt or gpt2 (SmolLM models are llama)."
    )


@pytest.mark.parametrize("name", ["/no/such/folder", "./model", "~/model", "model.gguf", "a/b/c"])
def test_a_path_to_nothing_is_not_looked_for_on_the_hub(name, cache):
    assert refusal(name, cache) == (f"There is no model at {name}: name a folder, a .gguf file or a hub id.")


def test_a_folder_without_its_parts_says_which(folder, cache):
    (folder / "model.safetensors").unlink()
    assert " is missing): fetch the model again" in refusal(folder, cache)
    (folder / "config.json").write_text("{")
    assert "config.json is not valid JSON" in refusal(folder, cache)
    (folder / "config.json").unlink()
    assert f"{folder} has no config.json: name a folder that holds a model" in refusal(folder, cache)


def test_a_missing_part_of_the_weights_is_noticed(folder, cache):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    assert " is missing): fetch the model again" in refusal(folder, cache)


def test_a_file_that_is_no_model(folder, cache):
    assert "is not a .gguf file" in refusal(folder / "config.json", cache)


def test_a_smaller_vocabulary_is_the_beginning_of_a_larger_ones(tiny_model):
    whole = json.loads((tiny_model("llama") / "tokenizer.json").read_text())
    size = len(whole["model"]["vocab"]) - 30
    less = json.loads(json.dumps(whole))
    shrink_tokenizer(less, size)
    before, after = (Tokenizer.from_str(json.dumps(each)) for each in (whole, less))
    text = "The quick brown fox jumps over the lazy dog"
    assert max(before.encode(text).ids) >= size
    ids = after.encode(text).ids
    assert max(ids) < size
    assert after.decode(ids) == before.decode(ids) == text
