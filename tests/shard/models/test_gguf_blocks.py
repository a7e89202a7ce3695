"""Matrices in a GGUF file's own blocks are the numbers that ggml makes of them, and models answer by them."""

import gguf
import msgspec
import numpy as np
import pytest
import torch

from shard.fetch.convert import convert_gguf
from shard.messages import ShardConfig
from shard.models.checkpoint import Checkpoint, CheckpointError
from shard.models.gguf_blocks import GgufBlocks
from shard.models.gguf_index import BLOCK_SIZES, Place, read_index, write_index
from shard.runner import ModelRunner
from tests.shard.gguf_files import write_gguf

SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q6_K": [208]}  # places of halves


@pytest.mark.parametrize("kind", BLOCK_SIZES)
def test_blocks_of_every_kind_are_what_ggml_makes_of_them(tmp_path, kind: str):
    random = np.random.default_rng(0)
    numbers, num_bytes = BLOCK_SIZES[kind]
    raw = random.integers(0, 256, (8, 3, num_bytes), dtype=np.uint8)
    for at in SCALES[kind]:
        raw[:, :, at : at + 2] = random.uniform(1e-3, 0.1, (8, 3, 1)).astype(np.float16).view(np.uint8)
    (tmp_path / "model.gguf").write_bytes(b"head" + raw.tobytes())
    write_index(tmp_path, {"a": Place(kind, 4, (8, 3 * numbers)), "cut": Place(kind, 8, (8, 3 * numbers))})
    blocks = GgufBlocks(tmp_path)
    expected = gguf.quants.dequantize(raw.reshape(8, -1), gguf.GGMLQuantizationType[kind])
    assert blocks.read("a").dequantised().equal(torch.from_numpy(expected))
    with pytest.raises(CheckpointError, match="'cut'"):
        blocks.read("cut")


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    made = tmp_path_factory.mktemp("gguf")
    convert_gguf(write_gguf(tiny_model("llama"), made / "model.gguf", matrices="Q4_1"), made)
    return made


def test_a_converted_folders_blocks_are_its_weights(folder):
    blocks, checkpoint = GgufBlocks(folder), Checkpoint(folder)
    assert set(read_index(folder)) == {name for name, shape in checkpoint.shapes.items() if len(shape) > 1}
    for name in read_index(folder):
        assert blocks.read(name).dequantised().equal(checkpoint.read(name))


def test_a_model_in_its_own_blocks_computes_what_float32_does(folder):
    def runner(**settings):
        return ModelRunner(
            msgspec.convert({"model": str(folder), "kv_cache_bytes": 1 << 20} | settings, ShardConfig)
        )

    own, plain = runner(dtype="float32"), runner(dtype="float32", quantize="none")
    assert (own.ready().weights, plain.ready().weights) == ("gguf", "none")
    assert own.ready().version != plain.ready().version
    for mine, theirs in zip(own.decoder.linears, plain.decoder.linears, strict=True):
        x = torch.randn(3, mine.shape[1])
        torch.testing.assert_close(mine(x), theirs(x), rtol=1e-3, atol=1e-3 * float(theirs(x).abs().max()))
    assert own.model.weight_bytes < plain.model.weight_bytes
    assert own.decoder.num_parameters == plain.decoder.num_parameters
