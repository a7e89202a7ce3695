"""The operations as compiled C++ (kernels.cpp) for CPUs, and matrix products with weights packed by oneDNN.

Built on first use with the machine's C++ compiler and kept in the cache folder; without a compiler the shard
runs `PlainOps` and says so.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from shard.ops.batch import KV, Batch, HeadNorms, Heads, Rope
from shard.ops.plain import Linear, PlainOps

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILE_FLAGS = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-std=c++17"]
if platform.machine() == "x86_64":
    COMPILE_FLAGS.append("-mprefer-vector-width=512")
# Queries of one sequence in a step, above which gathering its context for one dense product pays.
LONG_CHUNK = 192
SUFFIX = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


class PackedLinear(Linear):
    """x @ weight.T + bias with the weight in oneDNN's blocked layout: no reordering at every call."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        self.shape = tuple(weight.shape)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias
        self._multiply = torch.ops.mkldnn._linear_pointwise.default
        self._multiply_add = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._multiply(x, self._weight, self._bias, "none", [], "")
        return out

    def add(self, x: torch.Tensor, summand: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._multiply_add(x, summand, self._weight, self._bias, "add")
        return out


class NativeOps(PlainOps):
    """Compiled operations for one CPU process. Tensors given must be contiguous and of `dtype`."""

    name = "native"

    def __init__(self, block_size: int, dtype: torch.dtype, num_threads: int, library: ctypes.CDLL):
        super().__init__(block_size)
        library.set_num_threads(num_threads)
        suffix = SUFFIX[dtype]
        self._rms_norm = _bind(library, f"rms_norm_{suffix}", "pppiif")
        self._silu_mul = _bind(library, f"silu_mul_{suffix}", "ppii")
        self._rope_write = _bind(library, f"rope_write_{suffix}", "pppppfppppiiiiii")
        self._attend = _bind(library, f"attend_{suffix}", "ppipppippiiiiiiif")
        self._log_sum_exp = {t: _bind(library, f"log_sum_exp_{s}", "ppii") for t, s in SUFFIX.items()}
        self._top_two = {t: _bind(library, f"top_two_{s}", "ppii") for t, s in SUFFIX.items()}
        self._likeliest = {t: _bind(library, f"likeliest_{s}", "ppiii") for t, s in SUFFIX.items()}
        self._choose = {t: _bind(library, f"choose_{s}", "ppppii") for t, s in SUFFIX.items()}
        self._keep_top = _bind(library, "keep_top", "pppii")
        self._packs = dtype is not torch.float16 or torch.ops.mkldnn._is_mkldnn_fp16_supported()

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        return PackedLinear(weight, bias) if self._packs else super().linear(weight, bias)

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
        """Long prompt chunks by torch's own attention over gathered blocks: matrix units win there."""
        starts = batch.query_starts.tolist()
        for i, num_keys in enumerate(batch.num_keys.tolist()):
            rows = slice(starts[i], starts[i + 1])
            if rows.stop - rows.start > LONG_CHUNK:
                keys, values = self.read(kv, batch.block_tables[i], num_keys, heads.dim)
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


def build(cache: Path) -> ctypes.CDLL | None:
    """The compiled kernels, from the cache folder if built before; None without a C++ compiler."""
    compiler = shutil.which("g++")
    if compiler is None or platform.machine() not in ("x86_64", "aarch64"):
        return None
    library = cache / f"kernels-{_digest(compiler)}.so"
    if not library.exists() and not _compile(compiler, library):
        return None
    return ctypes.CDLL(str(library))


def _compile(compiler: str, library: Path) -> bool:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        object_file, shared = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
        compiled = subprocess.run(
            [compiler, *COMPILE_FLAGS, "-c", str(SOURCE), "-o", str(object_file)], capture_output=True
        )
        # Linked without -ffast-math, which would make the whole process flush denormals, and against
        # torch's own OpenMP, so that both share one pool of threads.
        linked = compiled.returncode == 0 and subprocess.run(
            [compiler, "-shared", str(object_file), *_openmp(), "-lm", "-o", str(shared)], capture_output=True
        )
        if not linked or linked.returncode != 0:
            return False
        os.replace(shared, library)
    return True


def _openmp() -> list[str]:
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(bundled[0])] if bundled else ["-lgomp"]


def _digest(compiler: str) -> str:
    """Names a build: source, flags, compiler, torch and the processor's features."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else platform.processor()
    features = next((line for line in cpu.splitlines() if line.startswith(("flags", "Features"))), cpu)
    version = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True).stdout
    parts = [SOURCE.read_text(), *COMPILE_FLAGS, version, torch.__version__, features]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}


def _bind(library: ctypes.CDLL, name: str, signature: str):  # type: ignore[no-untyped-def]
    function = getattr(library, name)
    function.argtypes = [TYPES[letter] for letter in signature]
    function.restype = None
    return function
