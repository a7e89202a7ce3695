"""The operations on CUDA equal the plain ones; on a CPU with a stand-in for torch's FlashAttention."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from shard.ops import flash
from shard.ops.batch import KV, Batch, HeadNorms, Heads, Rope
from shard.ops.cuda import CudaOps
from shard.ops.plain import PlainOps
from tests.shard.driving import DEVICE, generate, make_runner, prompts_of
from tests.shard.exit_files import write_exits
from tests.shard.fake_flash import fake_flash
from tests.shard.ops.batches import TOLERANCE, make_batch

ON_CPU = DEVICE == "cpu"
DTYPES = [torch.float32] if ON_CPU else [torch.float16, torch.bfloat16]
SHAPES = [
    Heads(9, 3, 64, 64**-0.5),
    Heads(4, 4, 32, 32**-0.5, window=7),
    Heads(8, 1, 128, 128**-0.5),
    Heads(4, 4, 80, 80**-0.5, window=300),
]
BATCHES = {
    "decoding": [(1, 1), (1, 20), (1, 600), (1, 256), (1, 257)],
    "prompts": [(7, 50), (300, 300), (40, 513)],
    "both": [(1, 1), (200, 200), (1, 300), (16, 60), (1, 31)],
    "drafts": [(3, 3), (4, 259), (1, 40), (2, 17)],
    "drafts and prompts": [(4, 40), (9, 600), (2, 257), (5, 5)],
}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention on a CPU, in float32 too; a GPU has the real one."""
    if ON_CPU:
        monkeypatch.setattr(flash, "flash", fake_flash)
        monkeypatch.setattr(flash, "DTYPES", (torch.float32, *flash.DTYPES))


def batch_of(lengths: list[tuple[int, int]], block_size: int) -> Batch:
    batch = make_batch(lengths, block_size)
    fields = (getattr(batch, name) for name in batch.__struct_fields__)
    return Batch(*(each.to(DEVICE) if isinstance(each, torch.Tensor) else each for each in fields))


def filled(ops: PlainOps, heads: Heads, batch: Batch, dtype: torch.dtype = DTYPES[0]) -> KV:
    like = torch.empty(0, dtype=dtype, device=DEVICE)
    kv = ops.allocate(int(batch.block_tables.max()) + 2, heads, like)
    return KV(torch.randn_like(kv.keys), torch.randn_like(kv.values))


def queries(batch: Batch, heads: Heads, dtype: torch.dtype = DTYPES[0]) -> torch.Tensor:
    """A part of a fused projection, as a decoder has them."""
    fused = torch.randn(len(batch.positions), heads.query + 2 * heads.kv, heads.dim, device=DEVICE)
    return fused.to(dtype)[:, : heads.query]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=list(BATCHES))
@pytest.mark.parametrize("block_size", [16, 256])
@pytest.mark.parametrize("heads", SHAPES, ids=str)
def test_attention_equals_plain(stand_in, heads: Heads, block_size: int, lengths, dtype):
    torch.manual_seed(0)
    ops, batch = CudaOps(block_size), batch_of(lengths, block_size)
    kv, q = filled(ops, heads, batch, dtype), queries(batch, heads, dtype)
    close(ops.attend(q, heads, batch, kv), PlainOps.attend(ops, q, heads, batch, kv))


def test_blocks_reserved_and_blocks_without_keys_have_no_say(stand_in):
    """Whatever lies in them, and where a window hides all of a block."""
    torch.manual_seed(0)
    heads, ops = Heads(4, 2, 32, 1.0, window=20), CudaOps(16)
    batch = batch_of([(1, 100), (1, 3)], 16)
    kv, q = filled(ops, heads, batch), queries(batch, heads)
    expected = ops.attend(q, heads, batch, kv)
    hidden = batch.block_tables[0, :5].long()
    kv.keys[hidden], kv.values[hidden] = 50.0, 1e4
    close(ops.attend(q, heads, batch, kv), expected)
    reserved = torch.nn.functional.pad(batch.block_tables, (0, 3), value=1)
    close(ops.attend(q, heads, msgspec.structs.replace(batch, block_tables=reserved), kv), expected)


def test_more_blocks_than_one_call_takes_go_in_several(stand_in, monkeypatch):
    monkeypatch.setattr(flash, "MAX_PARTS", 10)
    torch.manual_seed(0)
    heads, ops = Heads(4, 2, 32, 1.0), CudaOps(16)
    batch = batch_of([(1, 60), (1, 3), (1, 50), (1, 17), (1, 64)], 16)
    kv, q = filled(ops, heads, batch), queries(batch, heads)
    close(ops.attend(q, heads, batch, kv), PlainOps.attend(ops, q, heads, batch, kv))


def test_keys_are_gathered_some_sequences_at_a_time(stand_in, monkeypatch):
    """However many there are, and one that is longer alone."""
    torch.manual_seed(0)
    heads, ops, gathered = Heads(4, 2, 32, 1.0), CudaOps(16), []
    batch = batch_of([(9, 60), (40, 40), (7, 250), (1, 80), (8, 30), (6, 90)], 16)
    kv, q = filled(ops, heads, batch), queries(batch, heads)
    expected = PlainOps.attend(ops, q, heads, batch, kv)
    real = flash.flash
    monkeypatch.setattr(
        flash, "flash", lambda q, kv, *more, **by: gathered.append(kv) or real(q, kv, *more, **by)
    )
    monkeypatch.setattr(flash, "GATHERED_KEYS", 128)
    close(ops.attend(q, heads, batch, kv), expected)
    assert [len(each.keys) * 16 for each in gathered[1:]] == [64 + 48, 256, 32 + 96]


@pytest.mark.parametrize(
    ("ops", "heads", "dtype"),
    [
        (CudaOps(16), Heads(2, 1, 32, 1.0), torch.float32),
        (CudaOps(16), Heads(2, 1, 12, 1.0), torch.bfloat16),
        (CudaOps(16), Heads(2, 1, 264, 1.0), torch.bfloat16),
        (CudaOps(16, has_flash=False), Heads(2, 1, 32, 1.0), torch.bfloat16),
    ],
    ids=["float32", "narrow heads", "wide heads", "old GPU"],
)
def test_what_flash_attention_does_not_do_is_done_plainly(monkeypatch, ops, heads, dtype):
    monkeypatch.setattr(flash, "flash", lambda *_, **__: pytest.fail("asked FlashAttention"))
    batch = batch_of([(1, 20), (3, 9)], 16)
    kv, q = filled(ops, heads, batch, dtype), queries(batch, heads, dtype)
    assert ops.attend(q, heads, batch, kv).equal(PlainOps.attend(ops, q, heads, batch, kv))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_is_written_is_read_and_the_rest_equals_plain(dtype):
    torch.manual_seed(0)
    heads, block_size = Heads(4, 2, 32, 1.0), 16
    ops, plain, batch = CudaOps(block_size), PlainOps(block_size), batch_of([(7, 50), (1, 20)], block_size)
    angles = torch.rand(60, heads.dim // 2, device=DEVICE) * 6
    rope = Rope(angles.cos(), angles.sin(), heads.dim)
    weights = torch.rand(2, heads.dim, device=DEVICE).to(dtype)
    norms = HeadNorms(weights[0], weights[1], 1e-6)
    qkv = torch.randn(8, heads.width, device=DEVICE).to(dtype)
    num_blocks, like = int(batch.block_tables.max()) + 1, torch.empty(0, dtype=dtype, device=DEVICE)
    pool, other = ops.allocate(num_blocks, heads, like), plain.allocate(num_blocks, heads, like)
    close(
        ops.rope_write(qkv, heads, rope, norms, batch, pool),
        plain.rope_write(qkv, heads, rope, norms, batch, other),
    )
    for table, num_keys in zip(batch.block_tables, batch.num_keys.tolist(), strict=True):
        found = ops.read(pool, table, num_keys, heads.dim)
        for ours, theirs in zip(found, plain.read(other, table, num_keys, heads.dim), strict=True):
            close(ours, theirs)
    x, weight = torch.randn(5, 64, device=DEVICE).to(dtype), torch.rand(64, device=DEVICE).to(dtype)
    close(ops.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5))
    close(ops.silu_mul(x), plain.silu_mul(x))


def test_one_plan_serves_all_layers_of_a_batch(stand_in, monkeypatch):
    made = []
    plan_of = flash.plan_of
    monkeypatch.setattr(flash, "plan_of", lambda *given: made.append(given) or plan_of(*given))
    heads, ops = Heads(2, 1, 32, 1.0), CudaOps(16)
    batch, other = batch_of([(1, 20)], 16), batch_of([(1, 30)], 16)
    for each in (batch, batch, batch, other, other):
        ops.attend(queries(each, heads), heads, each, filled(ops, heads, each))
    assert len(made) == 2


def test_torchs_operator_takes_what_it_is_given():
    """By its own description, of the torch installed: a kernel needs a GPU."""

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    starts, counts = empty(4, dtype=torch.int32), empty(3, dtype=torch.int32)
    pools = KV(empty(5, 16, 2, 64), empty(5, 16, 2, 64))
    for num_queries, is_causal, window in ((1, False, 0), (7, True, 0), (7, True, 20)):
        q = empty(3 * num_queries, 6, 64)
        out, log_sums = flash.flash(
            q,
            pools,
            starts,
            starts,
            counts,
            max_queries=num_queries,
            max_keys=16,
            scale=0.1,
            is_causal=is_causal,
            window=window,
        )
        assert out.shape == q.shape and out.dtype == q.dtype
        assert log_sums.shape == (6, len(q)) and log_sums.dtype == torch.float32


@pytest.fixture
def on_cuda_ops(stand_in, monkeypatch) -> Callable[[], None]:
    """From when it is called, runners on a CPU have the operations on CUDA, as those on a GPU have anyway."""

    def switch() -> None:
        if ON_CPU:
            monkeypatch.setattr("shard.model.choose_ops", lambda device, dtype, size, *_: CudaOps(size))

    return switch


MODES = {
    "full": {},
    "per_row": {"exit_mode": "per_row", "kv_fill": "recompute"},
    "synchronized": {"exit_mode": "synchronized", "kv_fill": "project"},
    "capped": {"exit_mode": "capped", "num_layers": 2},
    "speculative": {"exit_mode": "speculative"},
}


@pytest.mark.parametrize("block_size", [16, 256])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_says_what_it_says_elsewhere(
    tiny_model, tmp_path: Path, on_cuda_ops, mode: str, block_size: int
):
    model = tiny_model("qwen3")
    config = {"block_size": block_size, "exit_fallback": False, "exit_threshold": 0.01} | MODES[mode]
    if mode != "full":
        config["exits"] = str(write_exits(tmp_path / "exits", model, [1, 2], "block"))
    prompts = prompts_of(259, [3, 17, 40, 64, 9])

    def said(device: str) -> list[list[tuple[int, int]]]:
        runner = make_runner(model, device=device, **config)
        return [[(t.id, t.exit_layer) for t in g.tokens] for g in generate(runner, prompts, 12, chunk=20)]

    expected = said("cpu")
    on_cuda_ops()
    assert said(DEVICE) == expected


def test_every_family_says_what_it_says_elsewhere(every_tiny_model: Path, on_cuda_ops):
    prompts = prompts_of(259, [1, 30, 90])
    expected = [g.ids for g in generate(make_runner(every_tiny_model, device="cpu"), prompts, 12)]
    on_cuda_ops()
    assert [g.ids for g in generate(make_runner(every_tiny_model), prompts, 12, chunk=40)] == expected
