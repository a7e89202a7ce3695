"""Real models that change on a running shard: texts stay, weights are shared, memory comes back."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch

from shard.engine.kv_cache import KVCache, memory_errors
from shard.exits.exit_heads import ExitError
from shard.loader import Allowance, ModelLoader
from shard.memory import weight_bytes
from shard.messages import Commit, NewSequence, Prepare, Sampling, ShardConfig, SwapFailed
from shard.model import Model
from shard.models.checkpoint import CheckpointError
from shard.models.load import load_decoder
from shard.models.weight_cache import StagingWeightReader, WeightCache
from shard.ops.batch import KV, Heads
from shard.ops.plain import PlainOps
from shard.served_models import ServedModels, Unwanted
from tests.shard.driving import DEVICE, generate, make_runner
from tests.shard.exit_files import write_exits
from tests.shard.many_models import Asked, Driver

KV_BYTES = 1 << 20
SETTINGS = {
    "device": DEVICE,
    "dtype": "float32",
    "kv_cache_bytes": KV_BYTES,
    "max_total_tokens": 160,
    "num_threads": 1,
}


def config(folder: Path, **more) -> ShardConfig:
    return ShardConfig(str(folder), **(SETTINGS | more))


def driver(folder: Path, **more) -> Driver:
    return Driver(ServedModels(config(folder, **more), ModelLoader()))


def prompts(count: int, first: int = 0) -> list[NewSequence]:
    """Prompts of several lengths, greedy and sampled."""
    made = []
    for id in range(first, first + count):
        tokens = [(7 * id + 13 * i) % 250 for i in range(1, 4 + 11 * (id % 4))]
        sampling = Sampling(temperature=0.8 * (id % 2), seed=id)
        made.append(NewSequence(id, 0, tokens, len(tokens), 12 + 5 * (id % 3), True, sampling))
    return made


def expected(asked: Asked, folder: Path, **more) -> list[int]:
    """The answer of a separate runner."""
    runner = make_runner(folder, **(SETTINGS | more))
    new = asked.new
    return generate(runner, [new.token_ids], new.max_new_tokens, [new.sampling])[0].ids


def living(shard: Driver) -> dict[int, Any]:
    return shard.shard.living


@pytest.fixture(params=["follows", "is copied"] if DEVICE == "cpu" else ["is copied"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How memory gets from one model to another: by itself, or as on a device on which pools are fixed."""
    if request.param == "is copied" and DEVICE == "cpu":
        for module in ("engine.kv_cache", "runner", "loader"):
            monkeypatch.setattr(f"shard.{module}.is_elastic", lambda device: False)
        monkeypatch.setattr("shard.model.choose_ops", lambda device, dtype, size, *_: PlainOps(size))
    return request.param


@pytest.mark.parametrize("block_size", [16, 32])
def test_texts_do_not_change_across_any_changes(
    tiny_model: Callable[[str], Path], tmp_path: Path, block_size: int, memory: str
) -> None:
    llama, qwen = tiny_model("llama"), tiny_model("qwen2")
    exits = write_exits(tmp_path / "exits", llama, [1, 2, 3], "block")
    by_epoch = [
        (llama, {}),
        (llama, {"num_layers": 2}),
        (llama, {"num_layers": 3, "exit_mode": "capped", "exits": str(exits)}),
        (qwen, {"num_layers": 3}),
        (llama, {"exit_mode": "speculative", "exit_layers": [2], "exit_fallback": False}),
        (llama, {"num_layers": 1}),
        (qwen, {}),
        (llama, {}),
    ]
    shared = {"block_size": block_size, "prefix_cache": True}
    shard = driver(llama, kv_cache_bytes=8 * KV_BYTES, **shared)
    for epoch, (folder, more) in enumerate(by_epoch):
        if epoch:
            shard.change(config(folder, **shared, **more))
        again = msgspec.structs.replace(prompts(1, first=7)[0], id=100 + epoch)
        shard.ask(*prompts(3, first=3 * epoch), again)
        for _ in range(3):
            shard.step()
    assert len(living(shard)) > 3
    shard.finish()
    for asked in shard.asked.values():
        [epoch] = asked.ran_on
        assert asked.tokens == expected(asked, by_epoch[epoch][0], **by_epoch[epoch][1])
    found = (made.num_cached_tokens for output in shard.outputs for made in output.outputs)
    assert any(found) or memory == "is copied"
    assert list(living(shard)) == [7]


def test_a_shallower_model_finds_what_a_deeper_one_has_computed(tiny_model: Callable[[str], Path]) -> None:
    """Exactly: its answers are those of a shard that never had another depth. A deeper one begins anew."""
    folder = tiny_model("llama")
    asked = [NewSequence(0, 0, [(7 * i) % 250 for i in range(90)], 90, 12, True)]
    shard = driver(folder, block_size=16, prefix_cache=True, dtype="float32")
    found = []
    for epoch, depth in enumerate((4, 3, 2, 4)):
        committed = shard.change(config(folder, num_layers=depth, prefix_cache=True)) if epoch else None
        if committed is not None and shard.shard.living[epoch].resizes_freely:
            assert bool(committed.kept_blocks) == (depth < 4)
            assert bool(committed.dropped_tokens) == (depth == 4)
        shard.ask(msgspec.structs.replace(asked[0], id=epoch))
        shard.finish()
        found.append(max(made.num_cached_tokens for out in shard.outputs for made in out.outputs))
        answer = generate(make_runner(folder, num_layers=depth), [asked[0].token_ids], 12)[0].ids
        assert shard.asked[epoch].tokens == answer
        shard.outputs[:-1] = []
        shard.outputs[-1] = msgspec.structs.replace(shard.outputs[-1], outputs=[])
    if DEVICE == "cpu":
        assert found == [0, 80, 80, 0]


def test_what_runs_at_the_change_keeps_its_blocks_and_new_ones_find_them(
    tiny_model: Callable[[str], Path],
) -> None:
    folder = tiny_model("llama")
    prompt = [(7 * i) % 250 for i in range(90)]
    shard = driver(folder, block_size=16, prefix_cache=True)
    shard.ask(NewSequence(0, 0, prompt, 90, 30, True))
    for _ in range(12):
        shard.step()
    shard.change(config(folder, num_layers=2, prefix_cache=True))
    shard.ask(NewSequence(1, 0, prompt, 90, 30, True))
    shard.finish()
    for id, depth in ((0, 4), (1, 2)):
        expected = generate(make_runner(folder, num_layers=depth), [prompt], 30)[0].ids
        assert shard.asked[id].tokens == expected
    if DEVICE == "cpu":
        assert max(made.num_cached_tokens for out in shard.outputs for made in out.outputs) == 80


def test_texts_do_not_change_where_memory_is_tight(tiny_model: Callable[[str], Path], memory: str) -> None:
    folder = tiny_model("llama")
    block = make_runner(folder, **SETTINGS).block_bytes
    shard = driver(folder, kv_cache_bytes=24 * block)
    shard.ask(*prompts(12))
    for depth in (3, 4, 2, 4, 1, 4):
        prepared = shard.prepare(config(folder, num_layers=depth))
        assert not isinstance(prepared, SwapFailed)
        while isinstance(shard.commit(), SwapFailed):
            shard.step(6)
        shard.ask(*prompts(2, first=len(shard.asked)))
    shard.finish()
    assert sum(asked.num_attempts > 1 for asked in shard.asked.values()) > 0
    for asked in shard.asked.values():
        if len(set(asked.ran_on)) == 1:
            depth = (4, 3, 4, 2, 4, 1, 4)[asked.ran_on[0]]
            assert asked.tokens == expected(asked, folder, num_layers=depth)


def test_texts_do_not_change_while_models_are_prepared_on_another_thread(
    tiny_model: Callable[[str], Path],
) -> None:
    folder = tiny_model("llama")
    shard = driver(folder, kv_cache_bytes=8 * KV_BYTES)
    depths = [4, 2, 3, 1, 4, 2, 4]
    with ThreadPoolExecutor(1) as background:
        for depth in depths[1:]:
            preparing = background.submit(shard.prepare, config(folder, num_layers=depth))
            shard.ask(*prompts(2, first=len(shard.asked)))
            while not preparing.done():
                shard.step()
            assert preparing.result().ready.depth == depth
            assert shard.commit().ready.depth == depth
    shard.finish()
    for asked in shard.asked.values():
        assert asked.tokens == expected(asked, folder, num_layers=depths[asked.ran_on[0]])


def test_depths_of_one_model_share_their_layers_and_exits(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny_model("llama")
    exits = str(write_exits(tmp_path / "exits", folder, [1, 2, 3], "mlp"))
    shard = driver(folder, exit_mode="per_row", exits=exits)
    shard.ask(*prompts(1))
    shard.step()
    shard.change(config(folder, num_layers=2, exit_mode="capped", exits=exits))
    old, new = living(shard).values()
    assert [_pointers(layer) for layer in old.decoder.layers[:2]] == [
        _pointers(layer) for layer in new.decoder.layers
    ]
    assert old.decoder.embedding.data_ptr() == new.decoder.embedding.data_ptr()
    assert old.model.exits[1].mlp.up is new.model.exits[0].mlp.up
    shared = set(old.weights) & set(new.weights)
    assert weight_bytes([old.weights, new.weights]) == sum(old.weights.values())
    assert shared == set(new.weights)


def test_a_head_that_is_the_embedding_once_more_is_held_once_beside_a_model_that_runs(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    tensors = dict(_tensors(folder))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    shard = driver(folder)
    before = sum(living(shard)[0].weights.values())
    shard.ask(*prompts(1))
    shard.step()
    shard.change(config(folder, num_layers=2))
    old, new = living(shard).values()
    assert old.decoder.head is new.decoder.head
    assert weight_bytes([old.weights, new.weights]) == before
    shard.finish()
    assert shard.asked[0].tokens == expected(shard.asked[0], tiny_model("llama"))


def _pointers(layer) -> list[int]:
    return [id(tensor) for tensor in (*layer.qkv.tensors, *layer.down.tensors, layer.mlp_norm)]


def test_a_deeper_model_reads_the_missing_layers_alone(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model("llama")
    shard = driver(folder, num_layers=3)
    from shard.models.checkpoint import Checkpoint

    read: list[str] = []
    original = Checkpoint.read
    monkeypatch.setattr(
        Checkpoint, "read", lambda self, name, shape=None: read.append(name) or original(self, name, shape)
    )
    shard.change(config(folder))
    assert read and all(".3." in name for name in read)
    read.clear()
    shard.change(config(folder, num_layers=2))
    assert read == []


def test_changed_files_are_other_weights(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    shard = driver(folder)
    tensors = {name: value * 1.5 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    shard.change(config(folder))
    shard.ask(*prompts(1))
    shard.finish()
    assert shard.asked[0].tokens == expected(shard.asked[0], folder)


def test_a_generation_that_ends_frees_its_weights_and_blocks(
    tiny_model: Callable[[str], Path], memory: str
) -> None:
    shard = driver(tiny_model("llama"))
    layers = [weakref.ref(layer.qkv) for layer in living(shard)[0].decoder.layers]
    cache = weakref.ref(living(shard)[0].kv_cache)
    before = shard.shard.ready().num_blocks
    shard.ask(*prompts(2))
    shard.step()
    shard.change(config(tiny_model("llama"), num_layers=2))
    assert all(layer() is not None for layer in layers)
    shard.finish()
    gc.collect()
    assert [layer() is not None for layer in layers] == [True, True, False, False]
    assert cache() is None
    freed = sum(t.numel() * 4 for name, t in _tensors(tiny_model("llama")) if ".2." in name or ".3." in name)
    assert shard.outputs[-1].num_blocks == (KV_BYTES + freed) // living(shard)[1].block_bytes
    assert shard.outputs[-1].num_blocks > 2 * before


def _tensors(folder: Path) -> list[tuple[str, torch.Tensor]]:
    from safetensors.torch import load_file

    return list(load_file(folder / "model.safetensors").items())


def _without(folder: Path, name: str) -> None:
    from safetensors.torch import save_file

    tensors = {key: value for key, value in _tensors(folder) if name not in key}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _misshapen(folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = dict(_tensors(folder))
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "more", "error", "reason"),
    [
        (lambda folder: _without(folder, ".2.mlp.down"), {}, CheckpointError, "is missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), {}, CheckpointError, "missing"),
        (_misshapen, {}, CheckpointError, "has shape"),
        (_cut, {}, CheckpointError, "damaged"),
        (lambda folder: (folder / "config.json").write_text("{"), {}, (OSError, ValueError), "."),
        (lambda folder: None, {"num_layers": 9}, ValueError, "num_layers must be"),
        (lambda folder: None, {"exit_mode": "capped", "exits": "nowhere"}, ExitError, "does not exist"),
        (lambda folder: None, {"swap_reserve_bytes": 100}, MemoryError, "more than the 100 bytes"),
    ],
)
def test_any_failure_leaves_the_old_model_serving(
    tiny_model: Callable[[str], Path], tmp_path: Path, damage, more, error, reason: str
) -> None:
    folder = tiny_model("llama")
    shard = driver(folder, num_layers=3)
    shard.ask(*prompts(2))
    shard.step()
    bad = shutil.copytree(tiny_model("llama"), tmp_path / "bad")
    damage(bad)
    with pytest.raises(error, match=reason):
        shard.prepare(config(bad, **more))
    shard.finish()
    for asked in shard.asked.values():
        assert asked.tokens == expected(asked, folder, num_layers=3)
    assert shard.change(config(folder, num_layers=2)).ready.depth == 2


def test_a_discarded_model_is_forgotten(tiny_model: Callable[[str], Path]) -> None:
    shard = driver(tiny_model("llama"))
    shard.shard.prepare(Prepare(1, config(tiny_model("qwen2"))))
    prepared = weakref.ref(shard.shard.prepared.kv_cache)
    shard.shard.discard(1)
    gc.collect()
    assert prepared() is None
    assert isinstance(shard.shard.commit(Commit(1)), SwapFailed)


def test_reading_stops_when_nobody_wants_it() -> None:
    wanted = [True, False]
    allowance = Allowance(None, lambda: wanted.pop(0))
    allowance(10)
    with pytest.raises(Unwanted):
        allowance(10)


def test_phases_are_told(tiny_model: Callable[[str], Path]) -> None:
    shard = driver(tiny_model("llama"))
    prepared = shard.prepare(config(tiny_model("qwen2"), num_layers=2))
    assert set(prepared.phases_ms) == {"read", "pack", "copy", "allocate"}
    assert all(ms > 0 for ms in prepared.phases_ms.values())
    committed = shard.commit()
    assert committed.gap_ms > 0 and committed.ready.depth == 2


def test_more_sequences_make_more_blocks_useful(tiny_model: Callable[[str], Path]) -> None:
    shard = driver(tiny_model("llama"), max_batch_size=2)
    assert shard.shard.ready().num_blocks == 2 * 10
    more = shard.change(config(tiny_model("llama"), max_batch_size=4)).ready.num_blocks
    assert more == min(4 * 10, KV_BYTES // make_runner(tiny_model("llama"), **SETTINGS).block_bytes)


HEADS = Heads(query=4, kv=2, dim=32, scale=1.0)


def test_blocks_out_of_reach_give_their_memory_back() -> None:
    num_blocks = 1 << 13  # of 4 KiB in each pool
    like = torch.empty(0)
    cache, here = KVCache(PlainOps(16), HEADS, 2, num_blocks, like), psutil.Process()
    before = here.memory_info().rss
    cache.layers[0].keys[: num_blocks // 2] = 1
    assert here.memory_info().rss - before > 12 << 20
    cache.layers[0].keys[num_blocks // 2 :] = 1
    assert here.memory_info().rss - before > 28 << 20
    cache.release(list(range(num_blocks - 1, 99, -1)))
    assert here.memory_info().rss - before < 4 << 20
    assert cache.layers[0].keys[:100].eq(1).all()
    assert not cache.layers[0].keys[num_blocks // 2 :].any()


def test_memory_is_taken_page_by_page_before_it_is_written() -> None:
    num_blocks = 1 << 12  # of 4 KiB in each of four pools: 8 huge pages each
    cache, here = KVCache(PlainOps(16), HEADS, 2, num_blocks, torch.empty(0)), psutil.Process()
    before = here.memory_info().rss
    assert len(list(cache.touch_ahead(0, num_blocks))) == 4
    assert 7 << 20 < here.memory_info().rss - before < 9 << 20
    assert len(list(cache.touch_ahead(0, num_blocks))) == 0
    assert len(list(cache.touch_ahead(256, num_blocks))) == 2
    assert len(list(cache.touch_ahead(1024, 1024))) == 2
    cache.layers[1].values[1024:1536] = 5
    assert len(list(cache.touch_ahead(num_blocks, num_blocks))) == 4 * 8 - 8
    assert here.memory_info().rss - before > 60 << 20
    assert cache.layers[1].values[1024:1536].eq(5).all()


def test_other_pools_keep_what_blocks_hold() -> None:
    cache = KVCache(PlainOps(16), HEADS, 2, 8, torch.empty(0))
    for layer, kv in enumerate(cache.layers):
        for block in range(8):
            kv.keys[block], kv.values[block] = 10 * layer + block, -block
    pools = cache.layers
    cache.rebuild([6, 2, 3], 5)
    assert cache.layers is pools and cache.num_blocks == 5
    assert [kv.keys[:3, 0, 0, 0, 0, 0].tolist() for kv in pools] == [[6, 2, 3], [16, 12, 13]]
    assert [kv.values[:3, 0, 0, 0, 0].tolist() for kv in pools] == [[-6, -2, -3]] * 2
    assert len(pools[0].keys) == 5


def test_what_is_staged_arrives_in_the_same_tensors(tiny_model: Callable[[str], Path]) -> None:
    folder, to = tiny_model("gpt2"), torch.empty(0)
    reader = StagingWeightReader(PlainOps(16), to, WeightCache())
    decoder = load_decoder(folder, reader, None, 64)
    staged = [
        (tensor, tensor.data_ptr(), tensor.clone()) for tensor in (decoder.embedding, decoder.positions)
    ]
    assert reader.num_staged_bytes == sum(reader.num_bytes.values())
    reader.arrive()
    assert reader.num_staged_bytes == 0
    for tensor, before, value in staged:
        assert tensor.data_ptr() != before and tensor.equal(value)


def test_what_has_arrived_when_memory_ends_does_not_come_again(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = StagingWeightReader(PlainOps(16), torch.empty(0), WeightCache())
    decoder = load_decoder(tiny_model("gpt2"), reader, None, 64)
    wanted, real, copies = decoder.embedding.clone(), torch.Tensor.to, 0

    def to(tensor: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        nonlocal copies
        copies += 1
        if copies == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 KiB. GPU 0 is full")
        return real(tensor, *given, **named)

    monkeypatch.setattr(torch.Tensor, "to", to)
    num_staged = len(reader.staged)
    with pytest.raises(MemoryError), memory_errors():
        reader.arrive()
    assert len(reader.staged) == num_staged - 3
    reader.arrive()
    assert copies == num_staged + 1 and reader.num_staged_bytes == 0
    assert decoder.embedding.equal(wanted)


def test_what_is_prepared_is_named_as_a_fresh_shard_would(tiny_model: Callable[[str], Path]) -> None:
    shard = driver(tiny_model("llama"))
    ready = shard.change(config(tiny_model("llama"), num_layers=2)).ready
    fresh = make_runner(tiny_model("llama"), **SETTINGS, num_layers=2).ready()
    same = ("version", "depth", "num_parameters", "weight_bytes", "max_total_tokens", "eos_token_ids")
    assert json.dumps([getattr(ready, name) for name in same]) == json.dumps(
        [getattr(fresh, name) for name in same]
    )


def test_memory_is_that_of_the_device_while_weights_wait_for_it(tiny_model: Callable[[str], Path]) -> None:
    """Staged on the host, they say nothing of where KV is to be."""
    to = torch.empty(0, device="meta")
    model = Model(
        config(tiny_model("llama"), device="cpu"), StagingWeightReader(PlainOps(16), to, WeightCache())
    )
    assert model.decoder.embedding.device.type == "cpu"
    assert model.like.device.type == "meta"


def test_an_old_pool_goes_before_its_successor_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both at once are more than a device has that is full."""
    monkeypatch.setattr("shard.engine.kv_cache.is_elastic", lambda device: False)
    cache = KVCache(PlainOps(16), HEADS, 2, 8, torch.empty(0))
    old = [weakref.ref(kv.keys) for kv in cache.layers]
    allocate, alive = PlainOps.allocate, []

    def noting(ops: PlainOps, num_blocks: int, heads: Heads, like: torch.Tensor) -> KV:
        alive.append([keys() is not None for keys in old])
        return allocate(ops, num_blocks, heads, like)

    monkeypatch.setattr(PlainOps, "allocate", noting)
    cache.rebuild([6, 2, 3], 5)
    assert alive == [[False, True], [False, False]]


def test_a_device_without_memory_is_a_memory_error(tiny_model: Callable[[str], Path], monkeypatch) -> None:
    """In one sentence, whether it runs out while a model is loaded, or while one is committed."""
    says = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which"

    def full(*_: object) -> KV:
        raise torch.OutOfMemoryError(says)

    shard = driver(tiny_model("llama"))
    shard.ask(*prompts(2))
    shard.step()
    monkeypatch.setattr("shard.runner.is_elastic", lambda device: False)
    monkeypatch.setattr("shard.engine.kv_cache.is_elastic", lambda device: False)
    shard.prepare(config(tiny_model("qwen2")))
    monkeypatch.setattr(PlainOps, "allocate", full)
    with pytest.raises(MemoryError, match=r"^CUDA out of memory: Tried to allocate 20.00 MiB; .*\.$"):
        make_runner(tiny_model("llama"), **SETTINGS)
    assert isinstance(shard.commit(), SwapFailed)
