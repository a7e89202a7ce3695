"""Quantised matrices of a GGUF file, in the file's own blocks. An index beside it says where each one is.

Layouts are ggml's (ggml-quants.c): a row is a number of blocks, each of 32 or 256 numbers with their scales.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from shard.models.checkpoint import CheckpointError
from shard.models.gguf_index import BLOCK_SIZES, read_index
from shard.ops.blocks import Blocks
from shard.quality.weight_format import GGUF_FILE


class GgufBlocks:
    """The quantised matrices of a model folder, by their names in safetensors."""

    def __init__(self, folder: Path):
        self._file = folder / GGUF_FILE
        try:
            self._places = read_index(folder)
            self._bytes = torch.from_file(
                str(self._file), shared=False, size=self._file.stat().st_size, dtype=torch.uint8
            )
        except (OSError, RuntimeError, msgspec.DecodeError) as error:
            raise CheckpointError(f"the blocks of {self._file} cannot be read ({error})") from None

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str) -> Blocks:
        """One matrix. Raises `CheckpointError` if it is not wholly in the file."""
        place = self._places[name]
        rows, columns = place.shape
        end = place.offset + place.num_bytes
        if end > len(self._bytes):
            raise CheckpointError(f"{self._file} ends before tensor '{name}' does: fetch the model again")
        raw = self._bytes[place.offset : end].view(rows, -1, BLOCK_SIZES[place.kind][1])
        codes, scales, minima, bits = _DECODE[place.kind](raw)
        blocks = Blocks(codes.flatten(1), scales.flatten(1), minima, bits, columns)
        return blocks if place.heads is None else blocks.taken(_in_halves(rows, place.heads))


def _in_halves(num_rows: int, num_heads: int) -> torch.Tensor:
    """Where each row of a rotated projection is in ggml's order, which interleaves a head's two halves."""
    return torch.arange(num_rows).view(num_heads, -1, 2).transpose(1, 2).reshape(-1)


Decoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, int]  # codes, scales, minima, bits


def _floats(raw: torch.Tensor) -> torch.Tensor:
    """Two bytes each, (..., 2 n) -> (..., n)."""
    return raw.contiguous().view(torch.float16).float()


def _nibbles(raw: torch.Tensor) -> torch.Tensor:
    """The lower halves of all bytes, then the higher ones."""
    return torch.cat((raw & 15, raw >> 4), dim=-1)


def _q4_0(raw: torch.Tensor) -> Decoded:
    return _nibbles(raw[..., 2:]), _floats(raw[..., :2]), None, 4


def _q4_1(raw: torch.Tensor) -> Decoded:
    return _nibbles(raw[..., 4:]), _floats(raw[..., :2]), _floats(raw[..., 2:4]).flatten(1), 4


def _q8_0(raw: torch.Tensor) -> Decoded:
    return raw[..., 2:] ^ 128, _floats(raw[..., :2]), None, 8  # from signed to above zero


def _q4_k(raw: torch.Tensor) -> Decoded:
    """256 numbers: d, dmin, 8 scales and 8 minima of 6 bits in 12 bytes, and codes in 4 runs of 32 bytes."""
    both, six, codes = _floats(raw[..., :4]), raw[..., 4:16].int(), raw[..., 16:].unflatten(-1, (4, 32))
    low, high, rest = six[..., :4], six[..., 4:8], six[..., 8:]
    scales = torch.cat((low & 63, (rest & 15) | (low >> 6) << 4), dim=-1)
    minima = torch.cat((high & 63, (rest >> 4) | (high >> 6) << 4), dim=-1)
    return _nibbles(codes).flatten(2), scales * both[..., :1], -(minima * both[..., 1:]).flatten(1), 4


def _q6_k(raw: torch.Tensor) -> Decoded:
    """256 numbers: 4 lower bits of all, 2 higher bits of all, 16 signed scales, d."""
    lower, higher = raw[..., :128].unflatten(-1, (2, 2, 32)), raw[..., 128:192].unflatten(-1, (2, 32))
    low = torch.cat((lower & 15, lower >> 4), dim=-2)  # (..., 2, 4, 32)
    high = torch.stack([higher >> shift & 3 for shift in (0, 2, 4, 6)], dim=-2)
    scales = raw[..., 192:208].view(torch.int8).float() * _floats(raw[..., 208:])
    return (low | high << 4).flatten(2) + 96, scales, None, 8  # 32 is zero there, 128 here


_DECODE: dict[str, Callable[[torch.Tensor], Decoded]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}
