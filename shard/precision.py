"""Chooses the storage and compute types of a device; the only place that asks for its capabilities.

*Storage* is the type of weights, which `--dtype` names; *compute* is that of activations and products. The
KV cache is stored alike unless `--kv-cache-dtype` names another type; CPUs compute attention in float32.
Storing in 16 bits halves the bytes that every token reads, on every CPU. Where a CPU has no products of that
type, they are computed in float32 from weights that are widened on their way into the registers.
"""

import msgspec
import torch

from shard.cpu import Cpu, this_cpu
from shard.quality.weight_format import DESCRIPTIONS, NONE, certified_name

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
AUTO = "auto"
KV_DTYPES = DTYPES | {"int8": torch.int8}
_AMPERE = (8, 0)  # the first compute capability with products in bfloat16


class Precision(msgspec.Struct, frozen=True):
    """Storage and compute types of a device, with the reason in one sentence."""

    storage: torch.dtype
    compute: torch.dtype
    reason: str
    weights: str = NONE  # what matrices are kept in where it is not the storage type: see weight_format.py
    kv_storage: torch.dtype | None = None  # None: the storage type

    @property
    def dtype(self) -> str:
        """The storage type by its name."""
        return _name(self.storage)

    @property
    def certified(self) -> str:
        """What certificates call it: arithmetic may be wider than storage, and is no part of it."""
        return certified_name(self.dtype, self.weights, self.kv_dtype)

    @property
    def kv(self) -> torch.dtype:
        """The type of the KV cache."""
        return self.kv_storage or self.storage

    @property
    def kv_dtype(self) -> str:
        """The type of the KV cache by its name."""
        return _name(self.kv)

    @property
    def compute_dtype(self) -> str:
        return _name(self.compute)

    @property
    def label(self) -> str:
        """Names all types: models with equal labels answer alike."""
        types = [self.dtype] if self.storage is self.compute else [self.dtype, self.compute_dtype]
        if self.weights != NONE:
            types.append(self.weights)
        if self.kv is not self.storage:
            types.append(f"kv_{self.kv_dtype}")
        return "_".join(types)


def precision_of(device: str, dtype: str, weights: str = NONE, kv_cache_dtype: str = AUTO) -> Precision:
    """The precision for a dtype on a device; `auto` is the best one for it. Every dtype works.

    Raises `ValueError` for a KV cache of another type than weights on a GPU.
    """
    kv = None if kv_cache_dtype == AUTO else KV_DTYPES[kv_cache_dtype]
    if torch.device(device).type == "cuda":
        precision = cuda_precision(torch.cuda.get_device_capability(torch.device(device)), dtype)
        if kv not in (None, precision.storage):
            raise ValueError(
                f"kv_cache_dtype must be auto or {precision.dtype} on this GPU, not {kv_cache_dtype}: "
                "attention reads keys and values in the type of queries."
            )
        return msgspec.structs.replace(precision, weights=weights)
    precision = cpu_precision(usable_cpu(), dtype)
    if weights != NONE:
        precision = _with_quantised(precision, weights)
    return msgspec.structs.replace(precision, kv_storage=kv)


def _with_quantised(precision: Precision, weights: str) -> Precision:
    """On a CPU: products with quantised weights take float32, whatever else there is."""
    reason = f"Weights are {DESCRIPTIONS[weights]}; everything else is computed in float32."
    return Precision(precision.storage, torch.float32, reason, weights)


def usable_cpu() -> Cpu:
    """This CPU, limited to the instructions that torch may use."""
    cpu, capability = this_cpu(), torch.backends.cpu.get_cpu_capability().lower()
    at_most = [level.name for level in cpu.levels if level.torch == capability]
    return cpu.limited(at_most[-1]) if at_most and at_most[-1] != cpu.name else cpu


def cpu_precision(cpu: Cpu, dtype: str) -> Precision:
    """The precision for a dtype on a CPU with these instructions."""
    storage = DTYPES["bfloat16" if dtype == AUTO else dtype]
    if storage is torch.float32:
        return Precision(storage, storage, "float32 was asked for: weights take twice the bytes of bfloat16.")
    if _has_products(cpu, storage):
        return Precision(storage, storage, f"This CPU ({cpu.name}) has products in {_name(storage)}.")
    reason = (
        f"This CPU ({cpu.name}) has no products in {_name(storage)}: what is stored so is computed in float32"
    )
    if storage is torch.float16 and _has_products(cpu, torch.bfloat16):
        return Precision(storage, torch.float32, f"{reason}, slower than bfloat16, which it has products in.")
    return Precision(storage, torch.float32, f"{reason}.")


def _has_products(cpu: Cpu, dtype: torch.dtype) -> bool:
    """True if oneDNN multiplies in this dtype by native instructions, not by emulation."""
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())  # noqa: SLF001
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
        return False
    return cpu.machine != "x86_64" or bool(cpu.features & {"avx512_bf16", "amx_bf16", "avx_ne_convert"})


def cuda_precision(capability: tuple[int, int], dtype: str) -> Precision:
    """The precision for a dtype on a GPU of this compute capability."""
    has_bfloat16 = capability >= _AMPERE
    storage = DTYPES[("bfloat16" if has_bfloat16 else "float16") if dtype == AUTO else dtype]
    subject = f"This GPU (compute capability {capability[0]}.{capability[1]})"
    if storage is torch.float32:
        reason = "float32 was asked for: twice the bytes of bfloat16, and attention without FlashAttention."
    elif storage is torch.bfloat16 and not has_bfloat16:
        reason = f"{subject} emulates bfloat16, several times slower than float16."
    else:
        reason = f"{subject} has products in {_name(storage)}."
    return Precision(storage, storage, reason)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
