"""What a head's file must have, and where a head is left out."""

from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from shard.drafts.head_file import FILE, read_description
from shard.messages import DrafterKind, Mode, NewSequence
from shard.offline import OfflineEngine
from shard.tune.drafter_folder import load_drafter, save_drafter, served_head
from shard.tune.prompts import encode_prompts, is_held_out, read_prompts
from tests.shard.drafter_files import random_head, random_vocabulary, write_plain
from tests.shard.driving import generate, make_runner, prompts_of

SHIPPED = Path(__file__).parents[3] / "shard" / "exits_embedded"
DRAFTING = {"exit_mode": "speculative", "drafters": ["head"]}


@pytest.fixture
def model(tiny_model) -> Path:
    return tiny_model("llama")


def rewrite(folder: Path, change, **description) -> None:
    """The file in a folder with changed tensors, and with another description."""
    path = folder / FILE
    described = msgspec.structs.replace(read_description(folder), **description)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"drafter": msgspec.json.encode(described).decode()})


def test_a_written_head_is_read_as_it_was_rounded(model, tmp_path):
    head = random_head(model, 24, 8)
    save_drafter(tmp_path, head, {"chat, greedy": [0.6, 0.5]})
    rounded, found = served_head(head), load_drafter(tmp_path, torch.device("cpu"))
    assert found.weights.keys() == rounded.weights.keys()
    assert all(torch.equal(weight, rounded.weights[name]) for name, weight in found.weights.items())
    assert read_description(tmp_path).acceptance == {"chat, greedy": [0.6, 0.5]}
    assert read_description(tmp_path).layers == (1, 2, 4)


@pytest.mark.parametrize(
    "description, said",
    [
        ({"last": 30}, "the draft head was made for a model of 30 layers, not 4"),
        ({"hidden_size": 576}, "the draft head was made for hidden size 576, not 64"),
        ({"depths": [2, 1]}, "the draft head's depths must rise from at least 1 to below 4, not [2, 1]"),
        (
            {"depths": [1, 2, 3]},
            "does not fit the model: tensor 'fuse.weight' has shape (64, 256), not (64, 320)",
        ),
        ({"rerank": 8}, "which the draft head names as its vocabulary"),
        ({"rerank": 8, "vocabulary": "/etc/passwd"}, "which the draft head names as its vocabulary"),
    ],
)
def test_a_head_of_another_model_is_refused(model, tmp_path, description, said):
    write_plain(tmp_path, random_head(model))
    rewrite(tmp_path, lambda tensors: None, **description)
    with pytest.raises(ValueError, match="draft head") as refused:
        make_runner(model, draft_head=str(tmp_path), **DRAFTING)
    assert said in str(refused.value)


def test_a_layer_of_other_heads_is_refused(model, tmp_path):
    write_plain(tmp_path, random_head(model))

    def narrower(tensors):
        tensors["block.mlp.down_proj.weight"] = tensors["block.mlp.down_proj.weight"][:, :8].contiguous()

    rewrite(tmp_path, narrower)
    with pytest.raises(
        ValueError, match=r"does not fit the model: the layer 'block.' has matrices of shapes"
    ):
        make_runner(model, draft_head=str(tmp_path), **DRAFTING)


def test_without_a_file_the_way_to_one_is_named(model, tmp_path):
    with pytest.raises(ValueError, match=rf"there is no {FILE} in {tmp_path}: make one with `helios tune"):
        make_runner(model, draft_head=str(tmp_path), **DRAFTING)
    (tmp_path / FILE).write_bytes((model / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="has no description of a draft head in its metadata"):
        make_runner(model, draft_head=str(tmp_path), **DRAFTING)


def test_a_head_is_left_out_with_a_word_where_layers_are_missing(model, tmp_path):
    write_plain(tmp_path, random_head(model))
    shallow = make_runner(model, draft_head=str(tmp_path), num_layers=3, **DRAFTING)
    assert shallow.model.draft_head is None
    assert any("trained head" in warning for warning in shallow.ready().warnings)
    whole = make_runner(model, draft_head=str(tmp_path), **DRAFTING)
    assert not any("trained head" in warning for warning in whole.ready().warnings)


def test_its_keys_and_values_count_as_memory(model, tmp_path):
    write_plain(tmp_path, random_head(model, 24, 8), random_vocabulary(model, 24))
    full, whole = make_runner(model), make_runner(model, draft_head=str(tmp_path), **DRAFTING)
    assert whole.block_bytes == full.block_bytes // 4 * 5
    assert whole.model.weight_bytes > full.model.weight_bytes
    prompts = prompts_of(200, [30, 40])
    assert [one.ids for one in generate(whole, prompts)] == [one.ids for one in generate(full, prompts)]


def test_a_cached_prefix_is_taken_over_in_a_change_of_model(model, tmp_path):
    write_plain(tmp_path, random_head(model))
    settings = {"draft_head": str(tmp_path), "prefix_cache": True} | DRAFTING
    before, after = make_runner(model, **settings), make_runner(model, **settings)
    prompt = prompts_of(200, [70])
    first = generate(before, prompt, 20)
    assert after.inherit(before, 100) == 5
    again = generate(after, prompt, 20)
    assert again[0].ids == first[0].ids and again[0].num_cached_tokens == 64


def test_the_head_that_ships_is_small_and_found_without_being_named(embedded_model):
    path = SHIPPED / FILE
    assert path.stat().st_size <= 10_000_000
    described, tensors = read_description(SHIPPED), load_file(path)
    assert described.last == 30 and described.acceptance
    assert all(
        tensor.dtype == torch.int8 for tensor in tensors.values() if tensor.shape[-1:] not in ((1,), (576,))
    )
    runner = make_runner(
        embedded_model,
        dtype="bfloat16",
        max_total_tokens=256,
        kv_cache_bytes=1 << 26,
        drafts_always=True,
        exit_mode=Mode.SPECULATIVE,
        drafters=[DrafterKind.HEAD],
    )
    prompts = [prompt for prompt in read_prompts("code") if is_held_out(prompt)][:4]
    engine = OfflineEngine(runner, 4)
    for number, ids in enumerate(encode_prompts(embedded_model, prompts)):
        engine.add(NewSequence(number, 0, ids, len(ids), 24))
    drafted = accepted = 0
    while engine.has_unfinished:
        report = engine.step().exits
        for count in report.drafts.values() if report else ():
            drafted, accepted = drafted + count.drafted[0], accepted + count.accepted[0]
    assert drafted > 12 and accepted / drafted > 0.3
