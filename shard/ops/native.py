"""The operations for CPUs: compiled C++ (kernels.cpp, products.cpp), and products with packed weights.

Built on first use (build.py); without a compiler the shard runs `PlainOps` and says so.
"""

import ctypes
from collections.abc import Callable

import torch
from torch.nn import functional

from shard.ops.batch import KV, Batch, HeadNorms, Heads, Rope
from shard.ops.blocks import Blocks, packed
from shard.ops.plain import LANES, Linear, PlainOps
from shard.precision import Precision

# Queries of one sequence in a step, above which gathering its context for one dense product pays.
LONG_CHUNK = 192
SUFFIX = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
KV_SUFFIX = SUFFIX | {torch.int8: "i8"}


class PackedLinear(Linear):
    """x @ weight.T + bias with the weight in oneDNN's blocked layout: no reordering at every call."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        self.shape = tuple(weight.shape)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)  # noqa: SLF001
        self._bias = bias
        self._multiply = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
        self._multiply_add = torch.ops.mkldnn._linear_pointwise.binary  # noqa: SLF001

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._multiply(x, self._weight, self._bias, "none", [], "")
        return out

    def add(self, x: torch.Tensor, summand: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._multiply_add(x, summand, self._weight, self._bias, "add")
        return out


class _KernelLinear(Linear):
    """A product, with bias and summand, by a kernel of the library that takes packed weights."""

    _multiply: Callable[..., None]
    _more: tuple[float, ...] = ()  # the kernel's arguments after the numbers of rows, outputs and inputs

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x, None)

    def add(self, x: torch.Tensor, summand: torch.Tensor) -> torch.Tensor:
        return self._run(x, summand.contiguous())

    def _run(self, x: torch.Tensor, summand: torch.Tensor | None) -> torch.Tensor:
        x = x.contiguous()
        out = x.new_empty(len(x), self.shape[0])
        self._multiply(
            out.data_ptr(),
            x.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            None if summand is None else summand.data_ptr(),
            self._weight.data_ptr(),
            len(x),
            *self.shape,
            *self._more,
        )
        return out


class PanelLinear(_KernelLinear):
    """As `Linear`, in float32 with weights of 16 bits: panels of 16 outputs, [N / 16][K / 2][16][2].

    At few rows it takes half the time of float32 weights, as it reads half the bytes.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, library: ctypes.CDLL):
        num_outputs, num_inputs = self.shape = tuple(weight.shape)
        padded = functional.pad(weight, (0, num_inputs % 2, 0, -num_outputs % LANES))
        self._weight = padded.view(-1, LANES, padded.shape[1] // 2, 2).transpose(1, 2).contiguous()
        self._bias = None if bias is None else bias.float()
        self._multiply = _bind(library, f"multiply_{SUFFIX[weight.dtype]}", "pppppiii")


class QuantLinear(_KernelLinear):
    """As `Linear`, in float32 with weights in blocks of 4 or 8 bits.

    Activations are rounded to `num_digits` digits of 8 bits with a scale for each group, so that products are
    of whole numbers. Two digits are nearly exact, one is what llama.cpp computes with.
    """

    def __init__(self, blocks: Blocks, bias: torch.Tensor | None, library: ctypes.CDLL, num_digits: int):
        self.shape = blocks.shape
        self._weight, factor = packed(blocks)
        self._bias = None if bias is None else bias.float()
        self._more = (factor, num_digits)
        kind = f"{blocks.bits}_{blocks.group}" + ("" if blocks.minima is None else "_min")
        self._multiply = _bind(library, f"multiply_{kind}", "pppppiiifi")


class NativeOps(PlainOps):
    """Compiled operations for one CPU process. Input tensors must be contiguous and of the compute type."""

    name = "native"

    def __init__(self, block_size: int, precision: Precision, num_threads: int, library: ctypes.CDLL):
        super().__init__(block_size, precision.compute)
        library.set_num_threads(num_threads)
        self._library = library
        suffix = SUFFIX[precision.compute]
        of_kv = KV_SUFFIX[precision.kv]
        self._type = list(SUFFIX).index(precision.compute)
        self._rms_norm = _bind(library, f"rms_norm_{suffix}", "pppiif")
        self._silu_mul = _bind(library, f"silu_mul_{suffix}", "ppii")
        self._rope_write = _bind(library, f"rope_write_{suffix}_{of_kv}", "pppppfppppiiiiii")
        self._attend = _bind(library, f"attend_{of_kv}", "ppiipppippiiiiiiif")
        self._log_sum_exp = {t: _bind(library, f"log_sum_exp_{s}", "ppii") for t, s in SUFFIX.items()}
        self._top_two = {t: _bind(library, f"top_two_{s}", "ppii") for t, s in SUFFIX.items()}
        self._likeliest = {t: _bind(library, f"likeliest_{s}", "ppiii") for t, s in SUFFIX.items()}
        self._choose = {t: _bind(library, f"choose_{s}", "ppppii") for t, s in SUFFIX.items()}
        self._keep_top = _bind(library, "keep_top", "pppii")

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        if weight.dtype is self.compute:
            return PackedLinear(weight, bias)
        return PanelLinear(weight, bias, self._library)

    def quantised(self, blocks: Blocks, bias: torch.Tensor | None = None, num_digits: int = 2) -> Linear:
        return QuantLinear(blocks, bias, self._library, num_digits)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out = torch.empty_like(x)
        dim = x.shape[-1]
        self._rms_norm(out.data_ptr(), x.data_ptr(), weight.data_ptr(), x.numel() // dim, dim, eps)
        return out

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        rows, width = gate_up.shape
        out = gate_up.new_empty(rows, width // 2)
        self._silu_mul(out.data_ptr(), gate_up.data_ptr(), rows, width // 2)
        return out

    def rope_write(
        self, qkv: torch.Tensor, heads: Heads, rope: Rope, norms: HeadNorms | None, batch: Batch, kv: KV
    ) -> torch.Tensor:
        self._rope_write(
            qkv.data_ptr(),
            rope.cos.data_ptr(),
            rope.sin.data_ptr(),
            norms.query.data_ptr() if norms else None,
            norms.key.data_ptr() if norms else None,
            norms.eps if norms else 0.0,
            batch.positions.data_ptr(),
            batch.slots.data_ptr(),
            kv.keys.data_ptr(),
            kv.values.data_ptr(),
            qkv.shape[0],
            heads.query,
            heads.kv,
            heads.dim,
            self.groups_per_block,
            rope.rotary_dim,
        )
        return qkv.view(-1, heads.query + 2 * heads.kv, heads.dim)[:, : heads.query]

    def attend(self, q: torch.Tensor, heads: Heads, batch: Batch, kv: KV) -> torch.Tensor:
        out = torch.empty(q.shape[0], heads.query_width, dtype=q.dtype)
        self._attend(
            out.data_ptr(),
            q.data_ptr(),
            self._type,
            q.stride(0),
            kv.keys.data_ptr(),
            kv.values.data_ptr(),
            batch.block_tables.data_ptr(),
            batch.block_tables.stride(0),
            batch.query_starts.data_ptr(),
            batch.num_keys.data_ptr(),
            batch.num_sequences,
            LONG_CHUNK,
            heads.query,
            heads.kv,
            heads.dim,
            self.groups_per_block,
            heads.window,
            heads.scale,
        )
        if batch.max_queries > LONG_CHUNK:
            self._attend_long(out, q, heads, batch, kv)
        return out

    def _attend_long(self, out: torch.Tensor, q: torch.Tensor, heads: Heads, batch: Batch, kv: KV) -> None:
        """Attention of long prompt chunks by torch over gathered blocks: matrix units are faster there."""
        starts = batch.query_starts.tolist()
        for i, num_keys in enumerate(batch.num_keys.tolist()):
            rows = slice(starts[i], starts[i + 1])
            if rows.stop - rows.start > LONG_CHUNK:
                keys, values = self.read(kv, batch.block_tables[i], num_keys, heads.dim)
                keys, values = keys.to(q.dtype), values.to(q.dtype)
                out[rows] = attend_dense(q[rows], keys, values, heads).flatten(1)

    def log_sum_exp(self, logits: torch.Tensor) -> torch.Tensor:
        out = torch.empty(logits.shape[0], dtype=torch.float32)
        self._log_sum_exp[logits.dtype](logits.data_ptr(), out.data_ptr(), *logits.shape)
        return out

    def top_two(self, logits: torch.Tensor) -> torch.Tensor:
        out = torch.empty(logits.shape[0], 2, dtype=torch.float32)
        self._top_two[logits.dtype](logits.data_ptr(), out.data_ptr(), *logits.shape)
        return out

    def likeliest(self, logits: torch.Tensor, count: int) -> torch.Tensor:
        out = torch.empty(logits.shape[0], count, dtype=torch.int64)
        self._likeliest[logits.dtype](logits.data_ptr(), out.data_ptr(), *logits.shape, count)
        return out

    def greedy(self, scores: torch.Tensor) -> torch.Tensor:
        num_rows = scores.shape[0]
        return self.choose(scores, torch.zeros(num_rows), torch.zeros(num_rows, 2, dtype=torch.int64))

    def choose(self, scores: torch.Tensor, temperatures: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        out = torch.empty(scores.shape[0], dtype=torch.int64)
        inverse = torch.where(temperatures > 0, 1 / temperatures, 0.0).float()
        low_words = keys.to(torch.uint32)
        self._choose[scores.dtype](
            scores.data_ptr(), inverse.data_ptr(), low_words.data_ptr(), out.data_ptr(), *scores.shape
        )
        return out

    def keep_top(self, scores: torch.Tensor, counts: torch.Tensor, masses: torch.Tensor) -> None:
        self._keep_top(scores.data_ptr(), counts.data_ptr(), masses.data_ptr(), *scores.shape)


def attend_dense(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, heads: Heads) -> torch.Tensor:
    """As `attend_one`, by torch's fused attention."""
    num_queries, num_keys, ratio = q.shape[0], keys.shape[0], heads.query // heads.kv
    wide_k = keys.repeat_interleave(ratio, dim=1).transpose(0, 1)[None]
    wide_v = values.repeat_interleave(ratio, dim=1).transpose(0, 1)[None]
    mask = None
    if heads.window or num_queries < num_keys:
        ahead = torch.arange(num_keys) - torch.arange(num_keys - num_queries, num_keys)[:, None]
        mask = (ahead <= 0) & (ahead > -heads.window) if heads.window else ahead <= 0
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None], wide_k, wide_v, attn_mask=mask, is_causal=mask is None, scale=heads.scale
    )
    return out[0].transpose(0, 1)


TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}


def _bind(library: ctypes.CDLL, name: str, signature: str):  # type: ignore[no-untyped-def]
    function = getattr(library, name)
    function.argtypes = [TYPES[letter] for letter in signature]
    function.restype = None
    return function
