"""Products with quantised weights equal those with the weights dequantised, whatever the instructions."""

import ctypes

import pytest
import torch

from shard.cli import default_cache_dir
from shard.ops.blocks import Blocks, concatenated, from_rows, packed, quantised
from shard.ops.build import build
from shard.ops.native import NativeOps
from shard.ops.plain import PlainOps
from shard.precision import Precision, usable_cpu

FLOAT32 = Precision(torch.float32, torch.float32, "")
STEPS = {1: 127, 2: 127 * 256}  # of a group's greatest activation, by digits


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    built = build(default_cache_dir(), usable_cpu())
    if built is None:
        pytest.skip("no C++ compiler on this machine")
    return built


def blocks_of(kind: str, num_outputs: int, num_inputs: int) -> Blocks:
    """Random blocks that use every code, the extreme ones too, with scales of very different sizes."""
    bits, group = (4 if kind.startswith("4") else 8), (16 if "16" in kind else 32)
    columns = -(-num_inputs // group) * group
    codes = torch.randint(0 if bits == 4 else 1, 1 << bits, (num_outputs, columns), dtype=torch.uint8)
    scales = torch.rand(num_outputs, columns // group) * 10.0 ** torch.randint(-4, 0, (num_outputs, 1))
    minima = -scales * torch.rand_like(scales) * 15 if kind.endswith("min") else None
    halves = None if minima is None else minima.half().float()
    return Blocks(codes, scales.half().float(), halves, bits, num_inputs)


def bound(x: torch.Tensor, blocks: Blocks, num_steps: int) -> torch.Tensor:
    """How far products may be off: activations by half a step of a group, scales by float16's rounding."""
    weight, group = blocks.dequantised().abs(), blocks.group
    padding = (0, -x.shape[1] % group)
    wide_x, wide = (torch.nn.functional.pad(t, padding).unflatten(1, (-1, group)) for t in (x.abs(), weight))
    of_steps = (wide_x.amax(2) / num_steps / 1.9) @ wide.sum(2).T
    return of_steps + 1e-3 * x.abs() @ weight.T / x.shape[1] ** 0.5 + 1e-6


@pytest.mark.parametrize("num_digits", [1, 2])
@pytest.mark.parametrize("num_rows", [1, 2, 5, 8, 14, 100])
@pytest.mark.parametrize("kind", ["4_32", "4_32_min", "8_32", "8_16"])
@pytest.mark.parametrize("shape", [(48, 64), (100, 71), (7, 30), (16, 576)])
def test_products_equal_those_of_dequantised_weights(
    library, kind: str, shape: tuple[int, int], num_rows: int, num_digits: int
):
    torch.manual_seed(0)
    blocks, bias = blocks_of(kind, *shape), torch.randn(shape[0]) * 1e-3
    x, summand = torch.randn(num_rows, shape[1]) * 5, torch.randn(num_rows, shape[0]) * 1e-3
    x[0, ::32] *= 100  # few large activations, as models have
    fast = NativeOps(16, FLOAT32, 2, library).quantised(blocks, bias, num_digits)
    plain = PlainOps(16).quantised(blocks, bias)
    within = bound(x, blocks, STEPS[num_digits])
    assert ((fast(x) - plain(x)).abs() <= within).all()
    assert ((fast.add(x, summand) - plain.add(x, summand)).abs() <= within).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_greatest_activations_and_codes_do_not_overflow(library, bits: int):
    codes = torch.full((16, 64), (1 << bits) - 1, dtype=torch.uint8)
    blocks = Blocks(codes, torch.ones(16, 2), None, bits, 64)
    signs = torch.tensor([1.0, -1.0])[torch.randint(0, 2, (3, 64))]
    signs[0], signs[1] = 1, -1
    found = NativeOps(16, FLOAT32, 1, library).quantised(blocks)(signs)
    torch.testing.assert_close(found, signs @ blocks.dequantised().T, rtol=1e-4, atol=1e-2)


def test_activations_of_nothing_give_the_bias(library):
    bias = torch.randn(20)
    product = NativeOps(16, FLOAT32, 1, library).quantised(blocks_of("4_32_min", 20, 64), bias)
    torch.testing.assert_close(product(torch.zeros(3, 64)), bias.expand(3, -1))


@pytest.mark.parametrize(("bits", "error"), [(8, 1 / 127), (4, 1 / 8)])
def test_numbers_are_rounded_by_no_more_than_half_a_code(bits: int, error: float):
    torch.manual_seed(0)
    matrix = torch.randn(20, 100)
    blocks = quantised(matrix, bits)
    greatest = torch.nn.functional.pad(matrix, (0, 28)).unflatten(1, (-1, 32)).abs().amax(2)
    bound = greatest.repeat_interleave(32, 1)[:, :100] * error * (0.501 if bits == 8 else 1.001)
    assert blocks.shape == (20, 100)
    assert ((blocks.dequantised() - matrix).abs() <= bound).all()


def test_codes_with_a_scale_by_rows_are_kept():
    codes = torch.randint(-127, 128, (5, 40), dtype=torch.int8)
    scales = torch.rand(5, 1)
    torch.testing.assert_close(from_rows(codes, scales).dequantised(), codes.float() * scales)


def test_rows_are_taken_and_put_together():
    blocks = blocks_of("4_32_min", 6, 64)
    order = torch.tensor([4, 5, 0, 1, 2, 3])
    parts = [blocks.taken(order[:2]), blocks.taken(order[2:])]
    assert concatenated(parts).dequantised().equal(blocks.dequantised()[order])


@pytest.mark.parametrize(
    ("kind", "bytes_of_32"), [("4_32", 18), ("4_32_min", 20), ("8_32", 34), ("8_16", 36)]
)
def test_packed_blocks_take_no_more_than_their_files(kind: str, bytes_of_32: int):
    weight, _ = packed(blocks_of(kind, 32, 64))
    assert weight.numel() == 32 * 64 // 32 * bytes_of_32
