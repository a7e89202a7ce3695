"""Compiled operations equal the plain ones, on any shape a model may have, over the same KV pool."""

import ctypes
from pathlib import Path

import pytest
import torch

from shard.ops.batch import KV, Batch, HeadNorms, Heads, Rope
from shard.ops.native import LONG_CHUNK, NativeOps, build
from shard.ops.plain import PlainOps

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SHAPES = [  # heads, block size: grouped, windowed, one KV head, narrow, a dim that must be padded
    (Heads(9, 3, 64, 64**-0.5), 16),
    (Heads(4, 4, 32, 32**-0.5, window=7), 32),
    (Heads(8, 1, 128, 128**-0.5), 16),
    (Heads(4, 2, 8, 8**-0.5), 32),
    (Heads(4, 4, 80, 80**-0.5, window=50), 16),
]
LENGTHS = [
    (1, 1),
    (1, 20),
    (7, 50),
    (LONG_CHUNK + 45, LONG_CHUNK + 45),
    (LONG_CHUNK + 16, LONG_CHUNK + 60),
    (1, 200),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    built = build(tmp_path_factory.mktemp("kernels"))
    if built is None:
        pytest.skip("no C++ compiler on this machine")
    return built


def make_batch(lengths: list[tuple[int, int]], block_size: int) -> Batch:
    """Sequences of (queries, keys) in shuffled blocks."""
    counts = [-(-keys // block_size) for _, keys in lengths]
    shuffled = torch.randperm(sum(counts)).split(counts)
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    positions, slots = [], []
    for row, (queries, keys) in enumerate(lengths):
        tables[row, : counts[row]] = shuffled[row]
        at = torch.arange(keys - queries, keys)
        positions.append(at)
        slots.append(shuffled[row][at // block_size] * block_size + at % block_size)
    starts = torch.tensor([0, *(queries for queries, _ in lengths)]).cumsum(0)
    contexts = torch.tensor([keys for _, keys in lengths])
    at, slot = torch.cat(positions), torch.cat(slots)
    return Batch(at, at, slot, starts, contexts, tables, max(q for q, _ in lengths), int(contexts.max()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "block_size"), SHAPES)
def test_rope_write_and_attention_equal_plain(library, dtype, heads, block_size):
    torch.manual_seed(0)
    plain, native = PlainOps(block_size), NativeOps(block_size, dtype, 2, library)
    batch = make_batch(LENGTHS, block_size)
    num_blocks = int(batch.block_tables.max()) + 1
    pool = plain.allocate(num_blocks, heads, torch.empty(0, dtype=dtype))
    pool.keys.normal_()
    pool.values.normal_()
    twin = KV(pool.keys.clone(), pool.values.clone())
    angles = torch.rand(LONG_CHUNK + 60, heads.dim // 2) * 6
    rope = Rope(angles.cos(), angles.sin(), heads.dim)
    norms = HeadNorms(torch.rand(heads.dim).to(dtype), torch.rand(heads.dim).to(dtype), 1e-6)
    qkv = torch.randn(len(batch.positions), heads.width).to(dtype)

    plain_q = plain.rope_write(qkv.clone(), heads, rope, norms, batch, pool)
    native_q = native.rope_write(qkv.clone(), heads, rope, norms, batch, twin)

    def close(a, b):
        torch.testing.assert_close(a, b, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])

    close(native_q, plain_q)
    close(twin.keys, pool.keys)
    close(twin.values, pool.values)
    close(native.attend(native_q, heads, batch, twin), plain.attend(plain_q, heads, batch, pool))


def test_attention_does_not_read_past_the_context(library):
    heads, block_size = Heads(2, 1, 32, 1.0), 16
    native = NativeOps(block_size, torch.float32, 1, library)
    batch = make_batch([(1, 5)], block_size)
    pool = native.allocate(1, heads, torch.empty(0))
    pool.keys.fill_(torch.nan)
    pool.values.fill_(torch.nan)
    native.write(torch.randn(5, 1, 32), torch.randn(5, 1, 32), torch.arange(5), pool)
    assert native.attend(torch.randn(1, 2, 32), heads, batch, pool).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_elementwise_operations_equal_plain(library, dtype):
    torch.manual_seed(0)
    plain, native = PlainOps(16), NativeOps(16, dtype, 2, library)
    x, weight, gate_up = (torch.randn(n).to(dtype) for n in (576 * 21, 576, 21 * 2 * 100))
    x, gate_up = x.view(21, 576), gate_up.view(21, 200)
    close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(native.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5), **close)
    torch.testing.assert_close(native.silu_mul(gate_up), plain.silu_mul(gate_up), **close)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_products_equal_plain(library, dtype):
    torch.manual_seed(0)
    weight, bias, x, summand = (torch.randn(*s).to(dtype) for s in ((48, 64), (48,), (5, 64), (5, 48)))
    fast = NativeOps(16, dtype, 2, library).linear(weight, bias)
    plain = PlainOps(16).linear(weight, bias)
    close = {"atol": 10 * TOLERANCE[dtype], "rtol": 10 * TOLERANCE[dtype]}
    torch.testing.assert_close(fast(x), plain(x), **close)
    torch.testing.assert_close(fast.add(x, summand), plain.add(x, summand), **close)


def test_choice_of_tokens_equals_plain_bit_for_bit(library):
    torch.manual_seed(0)
    plain, native = PlainOps(16), NativeOps(16, torch.float32, 2, library)
    scores = torch.randn(9, 5000) * 3
    keys = torch.randint(0, 2**32, (9, 2))
    temperatures = torch.tensor([0.0, 0.1, 0.5, 0.7, 1.0, 1.3, 2.0, 5.0, 0.0])
    assert native.choose(scores, temperatures, keys).equal(plain.choose(scores, temperatures, keys))
    torch.testing.assert_close(native.log_sum_exp(scores), plain.log_sum_exp(scores))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "count"), [(5000, 1), (5007, 32), (700, 300), (40, 40)])
def test_the_likeliest_are_those_of_a_sort(library, dtype, size: int, count: int):
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(6, size, generator=generator).to(dtype)
    logits[1] = logits[1].sort().values  # each better than all before it
    logits[2] = 0.5
    found = NativeOps(16, dtype, 2, library).likeliest(logits, count)
    assert all(len(set(ids)) == count for ids in found.tolist())
    best = logits.topk(count).values
    assert torch.equal(logits.gather(1, found).sort(descending=True).values, best)
    assert torch.equal(
        logits.gather(1, PlainOps(16).likeliest(logits, count)).sort(descending=True).values, best
    )


def test_top_k_and_top_p_keep_what_a_sort_keeps(library):
    torch.manual_seed(0)
    scores = torch.randn(40, 3000) * 4
    counts = torch.randint(0, 60, (40,))
    masses = torch.rand(40).clamp(min=0.01)
    counts[:3], masses[3:6] = 0, 1.0
    by_sort, by_bisection = scores.clone(), scores.clone()
    PlainOps(16).keep_top(by_sort, counts, masses)
    NativeOps(16, torch.float32, 2, library).keep_top(by_bisection, counts, masses)
    assert by_bisection.equal(by_sort)


def test_a_second_build_is_read_from_the_cache(library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert build(tmp_path) is not None
    monkeypatch.setattr("shard.ops.native._compile", lambda *_: pytest.fail("compiled again"))
    assert build(tmp_path) is not None


def test_without_a_compiler_there_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shard.ops.native.shutil.which", lambda _: None)
    assert build(tmp_path) is None
