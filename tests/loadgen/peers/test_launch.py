"""Both sides of a comparison get the same weights, slots and threads."""

from pathlib import Path

import pytest

from loadgen.client.server_info import Unusable
from loadgen.peers.launch import Size, Weights, llama_cpp, vllm
from loadgen.peers.venvs import Venv

VENV = Venv("/venv/bin/python", "peer 1")
SIZE = Size(num_streams=8, request_tokens=256, num_threads=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model.gguf", "config.json", "model.safetensors"):
        (tmp_path / name).touch()
    return tmp_path


def test_llama_cpp_and_helios_share_the_file(folder: Path):
    launch = llama_cpp(VENV, Weights.at(folder), SIZE, ["--port-name", "x"])
    assert list(launch.peer.command(9))[-5:] == [str(folder / "model.gguf"), "9", "8", "320", "3"]
    helios = " ".join(launch.helios.command(9))
    assert f"--model-id {folder} --exit-mode full --max-batch-size 8 --num-threads 3" in helios
    assert helios.endswith("--quantize auto --port-name x")


def test_a_gguf_file_alone_is_enough_for_llama_cpp_and_no_more(folder: Path):
    weights = Weights.at(folder / "model.gguf")
    assert str(folder / "model.gguf") in llama_cpp(VENV, weights, SIZE, ()).helios.command(9)
    with pytest.raises(Unusable, match=r"vLLM needs a folder with config.json"):
        vllm(VENV, weights, SIZE, ())


def test_vllm_and_helios_both_compute_in_bfloat16(folder: Path):
    launch = vllm(VENV, Weights.at(folder), SIZE, ())
    peer, helios = " ".join(launch.peer.command(9)), " ".join(launch.helios.command(9))
    assert f"--model {folder} --dtype bfloat16" in peer
    assert "--max-model-len 320 --max-num-seqs 8" in peer
    assert launch.peer.environment["OMP_NUM_THREADS"] == "3"
    assert helios.endswith("--dtype bfloat16 --quantize none")


def test_which_of_two_gguf_files_is_not_guessed(folder: Path):
    (folder / "other.gguf").touch()
    with pytest.raises(Unusable, match="does not hold exactly one"):
        llama_cpp(VENV, Weights.at(folder), SIZE, ())


def test_a_model_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(Unusable, match=r"--model: .*nothing does not exist"):
        Weights.at(tmp_path / "nothing")
