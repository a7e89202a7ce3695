"""Whether it fits is told before anything is started, with numbers and what to lower."""

import json

import pytest

from router.catalog import memory_check
from router.settings.config import GIB, MIB, Config
from router.settings.machine import Machine

SMALL_BOX = Machine(num_gpus=0, num_cores=2, available_bytes=4 * GIB)


@pytest.fixture
def model(tmp_path):
    """A gibibyte of bfloat16 weights in 10 layers, as far as its files tell."""
    config = {"dtype": "bfloat16", "num_hidden_layers": 10, "hidden_size": 64, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(GIB)
    return tmp_path


def settled(**settings):
    return Config(device="cpu", **settings).settle(SMALL_BOX)


def test_what_fits_is_no_shortage(model):
    assert memory_check.shortage(settled(), model, SMALL_BOX) is None


@pytest.mark.parametrize(
    "settings",
    [{"kv_cache_bytes": 4 * GIB}, {"num_shards": 2}, {"dtype": "float32", "kv_cache_bytes": 2 * GIB}],
)
def test_what_does_not_fit_is_one_sentence_with_what_to_lower(model, settings):
    sentence = memory_check.shortage(settled(**settings), model, SMALL_BOX)
    assert sentence is not None
    assert "4.0 GiB are available: lower --kv-cache-bytes" in sentence


def test_weights_count_as_loaded_not_as_stored(model):
    assert memory_check.weight_bytes(model, "bfloat16", None) == GIB
    assert memory_check.weight_bytes(model, "float32", None) == 2 * GIB
    assert memory_check.weight_bytes(model, "bfloat16", 5) == GIB // 2


def test_memory_of_gpus_simulations_and_other_hosts_is_not_this_machines(model):
    full = Machine(num_gpus=1, num_cores=2, available_bytes=MIB)
    for settings in (
        {"device": "cuda"},
        {"device": "sim"},
        {"device": "cpu", "shard_addresses": ("tcp://one:1",), "shard_secret_file": "secret"},
    ):
        assert memory_check.shortage(Config(**settings).settle(full), model, full) is None
