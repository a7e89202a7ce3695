"""Every family answers by weights rounded at load, near to what it answers by its own."""

from pathlib import Path

import pytest
import torch

from shard.messages import ShardConfig
from shard.quality.weight_format import INT4, INT8
from shard.runner import ModelRunner

FURTHEST = {INT8: 0.02, INT4: 0.25}  # of the norm of a product, by the format


def runner(folder: Path, quantize: str) -> ModelRunner:
    return ModelRunner(ShardConfig(str(folder), dtype="float32", quantize=quantize, kv_cache_bytes=1 << 20))


@pytest.mark.parametrize("quantize", [INT8, INT4])
def test_products_of_a_quantised_model_are_near_its_own(every_tiny_model, quantize: str):
    torch.manual_seed(0)
    own, rounded = runner(every_tiny_model, "none"), runner(every_tiny_model, quantize)
    assert rounded.ready().weights == quantize
    assert rounded.ready().version != own.ready().version
    assert rounded.decoder.num_parameters == own.decoder.num_parameters
    for exact, near in zip(own.decoder.linears, rounded.decoder.linears, strict=True):
        x = torch.randn(5, exact.shape[1])
        assert near.shape == exact.shape
        assert (near(x) - exact(x)).norm() <= FURTHEST[quantize] * exact(x).norm()
