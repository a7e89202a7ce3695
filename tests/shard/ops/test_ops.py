"""Compiled operations equal the plain ones, on any shape a model may have, over the same KV pool."""

import ctypes

import pytest
import torch

from shard.cli import default_cache_dir
from shard.ops.batch import KV, HeadNorms, Heads, Rope
from shard.ops.build import build
from shard.ops.native import LONG_CHUNK, NativeOps
from shard.ops.plain import PlainOps, scales
from shard.precision import Precision, precision_of, usable_cpu
from tests.shard.ops.batches import TOLERANCE, make_batch

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WIDENED = [Precision(storage, torch.float32, "") for storage in (torch.float16, torch.bfloat16)]
PRECISIONS = [*(Precision(dtype, dtype, "") for dtype in DTYPES), *WIDENED]
KV_TYPES = [  # each type of KV under each compute type, where it is not the weights'
    Precision(compute, compute, "", kv_storage=kv)
    for compute in DTYPES
    for kv in (*DTYPES, torch.int8)
    if kv is not compute
]
INT8_TOLERANCE = 0.05  # a step of 8 bits where numbers go up to 5
FLOAT32 = PRECISIONS[0]
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
def library() -> ctypes.CDLL:
    built = build(default_cache_dir(), usable_cpu())
    if built is None:
        pytest.skip("no C++ compiler on this machine")
    return built


def label(value: object) -> str | None:
    return value.label if isinstance(value, Precision) else None


@pytest.mark.parametrize("precision", [*PRECISIONS, *KV_TYPES], ids=label)
@pytest.mark.parametrize(("heads", "block_size"), SHAPES)
def test_rope_write_and_attention_equal_plain(library, precision, heads, block_size):
    torch.manual_seed(0)
    dtype = precision.compute
    plain, native = PlainOps(block_size), NativeOps(block_size, precision, 2, library)
    batch = make_batch(LENGTHS, block_size)
    num_blocks = int(batch.block_tables.max()) + 1
    pool = plain.allocate(num_blocks, heads, torch.empty(0, dtype=precision.kv))
    num_slots = num_blocks * block_size
    keys, values = torch.randn(2, num_slots, heads.kv, heads.dim)
    plain.write(keys, values, torch.arange(num_slots), pool)
    twin = KV(pool.keys.clone(), pool.values.clone())
    angles = torch.rand(LONG_CHUNK + 60, heads.dim // 2) * 6
    rope = Rope(angles.cos(), angles.sin(), heads.dim)
    norms = HeadNorms(torch.rand(heads.dim).to(dtype), torch.rand(heads.dim).to(dtype), 1e-6)
    qkv = torch.randn(len(batch.positions), heads.width).to(dtype)

    plain_q = plain.rope_write(qkv.clone(), heads, rope, norms, batch, pool)
    native_q = native.rope_write(qkv.clone(), heads, rope, norms, batch, twin)

    rough = INT8_TOLERANCE if precision.kv is torch.int8 else 0.0

    def close(a, b, least=0.0):
        tolerance = max(TOLERANCE[dtype], TOLERANCE.get(precision.kv, 0.0), least)
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)

    close(native_q, plain_q)
    for mine, its in zip(
        *(plain.read(kv, torch.arange(num_blocks), num_slots, heads.dim) for kv in (twin, pool)), strict=True
    ):
        close(mine, its, rough)
    close(native.attend(plain_q, heads, batch, pool), plain.attend(plain_q, heads, batch, pool))


@pytest.mark.parametrize("kv", [torch.float32, torch.int8])
def test_attention_does_not_read_past_the_context(library, kv):
    heads, block_size = Heads(2, 1, 32, 1.0), 16
    native = NativeOps(block_size, Precision(torch.float32, torch.float32, "", kv_storage=kv), 1, library)
    batch = make_batch([(1, 5)], block_size)
    pool = native.allocate(1, heads, torch.empty(0, dtype=kv))
    for tensor in (pool.keys, pool.values):
        (scales(tensor) if kv is torch.int8 else tensor).fill_(torch.nan)
    native.write(torch.randn(5, 1, 32), torch.randn(5, 1, 32), torch.arange(5), pool)
    assert native.attend(torch.randn(1, 2, 32), heads, batch, pool).isfinite().all()


@pytest.mark.parametrize("block_size", [16, 32])
def test_what_8_bits_hold_is_within_half_a_step_of_what_was_written(block_size):
    torch.manual_seed(0)
    heads, ops = Heads(6, 3, 40, 1.0), PlainOps(block_size)
    keys, values = torch.randn(2, 70, 3, 40) * torch.rand(70, 3, 1) * 9
    keys[7] = 0
    pool = ops.allocate(5, heads, torch.empty(0, dtype=torch.int8))
    ops.write(keys, values, torch.arange(70), pool)
    for held, written in zip(ops.read(pool, torch.arange(5), 70, 40), (keys, values), strict=True):
        half_a_step = written.abs().amax(dim=-1, keepdim=True) / 254
        assert ((held - written).abs() <= half_a_step * 1.001).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_elementwise_operations_equal_plain(library, dtype):
    torch.manual_seed(0)
    plain, native = PlainOps(16), NativeOps(16, Precision(dtype, dtype, ""), 2, library)
    x, weight, gate_up = (torch.randn(n).to(dtype) for n in (576 * 21, 576, 21 * 2 * 100))
    x, gate_up = x.view(21, 576), gate_up.view(21, 200)
    close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(native.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5), **close)
    torch.testing.assert_close(native.silu_mul(gate_up), plain.silu_mul(gate_up), **close)


@pytest.mark.parametrize("dtype", ["auto", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("num_rows", [1, 5, 14, 100])
@pytest.mark.parametrize("shape", [(48, 64), (100, 71), (7, 30)])
def test_products_equal_plain(library, dtype, num_rows: int, shape: tuple[int, int]):
    torch.manual_seed(0)
    precision = precision_of("cpu", dtype)
    weight, bias = torch.randn(shape).to(precision.storage), torch.randn(shape[0])
    x, summand = (torch.randn(num_rows, n).to(precision.compute) for n in (shape[1], shape[0]))
    fast = NativeOps(16, precision, 2, library).linear(weight, bias.to(precision.compute))
    plain = PlainOps(16, precision.compute).linear(weight, bias)
    tolerance = 10 * TOLERANCE[precision.compute]
    close = {"atol": tolerance, "rtol": tolerance}
    torch.testing.assert_close(fast(x), plain(x), **close)
    torch.testing.assert_close(fast.add(x, summand), plain.add(x, summand), **close)


def test_choice_of_tokens_equals_plain_bit_for_bit(library):
    torch.manual_seed(0)
    plain, native = PlainOps(16), NativeOps(16, FLOAT32, 2, library)
    scores = torch.randn(9, 5000) * 3
    keys = torch.randint(0, 2**32, (9, 2))
    temperatures = torch.tensor([0.0, 0.1, 0.5, 0.7, 1.0, 1.3, 2.0, 5.0, 0.0])
    assert native.choose(scores, temperatures, keys).equal(plain.choose(scores, temperatures, keys))
    scores[:, 4000:] = scores[:, 3000:4000]  # of equals the lowest
    likeliest = plain.choose(scores, torch.zeros(9), keys)
    assert native.greedy(scores).equal(likeliest) and plain.greedy(scores).equal(likeliest)
    torch.testing.assert_close(native.log_sum_exp(scores), plain.log_sum_exp(scores))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "count"), [(5000, 1), (5007, 32), (700, 300), (40, 40)])
def test_the_likeliest_are_those_of_a_sort(library, dtype, size: int, count: int):
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(6, size, generator=generator).to(dtype)
    logits[1] = logits[1].sort().values  # each better than all before it
    logits[2] = 0.5
    found = NativeOps(16, Precision(dtype, dtype, ""), 2, library).likeliest(logits, count)
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
    NativeOps(16, FLOAT32, 2, library).keep_top(by_bisection, counts, masses)
    assert by_bisection.equal(by_sort)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_finite_number_of_16_bits_widens_and_narrows_as_torch_does(library, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    every = every[every.isfinite()].sort().values
    inputs = torch.eye(2)[:1].contiguous()
    weights = torch.stack([every, torch.zeros_like(every)], 1)
    ops = NativeOps(16, Precision(dtype, torch.float32, ""), 1, library)
    assert ops.linear(weights)(inputs)[0].equal(every.float())
    between = torch.cat([every.float(), (every[1:].float() + every[:-1].float()) / 2, torch.randn(1000)])
    heads, batch = Heads(1, 1, 32, 1.0), make_batch([(1, 1)], 16)
    for values in between[: len(between) // 32 * 32].view(-1, 32)[:: 1 if dtype is torch.float16 else 7]:
        pool = ops.allocate(1, heads, torch.empty(0, dtype=dtype))
        qkv = values.repeat(1, 3).contiguous()
        ops.rope_write(qkv, heads, Rope(torch.empty(0), torch.empty(0), 0), None, batch, pool)
        assert pool.values.flatten()[:32].equal(values.to(dtype))
