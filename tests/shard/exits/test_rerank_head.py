"""A product of low rank proposes tokens, the LM head decides among them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shard.exits.rerank_head import RerankHead
from shard.ops.plain import Linear, PlainOps
from tests.shard.driving import generate, make_runner, prompts_of
from tests.shard.exit_files import change_tensors, write_exits


def test_the_likely_tokens_have_exact_logits_and_the_others_approximate_ones():
    generator = torch.Generator().manual_seed(1)
    head = torch.randn(50, 16, generator=generator)
    narrow, wide = torch.randn(4, 16, generator=generator), torch.randn(50, 4, generator=generator)
    features = torch.randn(3, 16, generator=generator)
    found = RerankHead(PlainOps(16), Linear(narrow), Linear(wide), head, 8)(features)
    exact, approximate = features @ head.t(), features @ narrow.t() @ wide.t()
    likely = torch.zeros(3, 50, dtype=torch.bool).scatter_(1, approximate.topk(8).indices, True)
    torch.testing.assert_close(found[likely], exact[likely])
    torch.testing.assert_close(found[~likely], approximate[~likely])


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])  # with a head of its own, and without
@pytest.mark.parametrize("mode", ["per_row", "capped", "speculative"])
def test_a_list_of_the_whole_vocabulary_is_the_lm_head(tiny_model, tmp_path: Path, family: str, mode: str):
    model = tiny_model(family)
    plain = write_exits(tmp_path / "plain", model, [1, 2], "mlp")
    listed = write_exits(tmp_path / "listed", model, [1, 2], "mlp", rank=4, rerank=1_000_000)
    same = load_file(plain / "exits.safetensors")
    change_tensors(listed / "exits.safetensors", lambda tensors: tensors.update(same))
    config = {"exit_mode": mode, "exit_fallback": False, "exit_threshold": 0.01}
    config["num_layers"] = 2 if mode == "capped" else None
    runners = [make_runner(model, exits=str(folder), **config) for folder in (plain, listed)]
    prompts = prompts_of(runners[0].decoder.shape.vocab_size, [3, 17, 9])
    expected, found = (
        [[(t.id, t.exit_layer) for t in made.tokens] for made in generate(runner, prompts, 10)]
        for runner in runners
    )
    assert found == expected
    if mode == "per_row":
        assert {layer for tokens in found for _, layer in tokens} & {1, 2}


def test_the_lm_head_can_read_another_thing_than_its_proposer():
    generator = torch.Generator().manual_seed(1)
    head, turn = torch.randn(50, 16, generator=generator), torch.randn(16, 16, generator=generator)
    narrow, wide = torch.randn(4, 16, generator=generator), torch.randn(50, 4, generator=generator)
    features = torch.randn(3, 16, generator=generator)
    found = RerankHead(PlainOps(16), Linear(narrow), Linear(wide), head, 50, Linear(turn))(features)
    torch.testing.assert_close(found, features @ turn.t() @ head.t())
