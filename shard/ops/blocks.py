"""Quantised matrices: codes of 4 or 8 bits, with a scale, and perhaps a minimum, for each group of inputs."""

from collections.abc import Sequence
from typing import Self

import msgspec
import torch
from torch.nn import functional

GROUP = 32  # inputs that share a scale, where this is ours to choose
LANES = 16  # outputs of a panel
_GREATEST_HALF = 2.0**14  # scales are brought near to this, far from where float16 loses digits


class Blocks(msgspec.Struct, frozen=True):
    """A matrix (N, K) of numbers (code - zero) * scale + minimum. C: K, up to a whole group."""

    codes: torch.Tensor  # (N, C) uint8
    scales: torch.Tensor  # (N, C / G) float32
    minima: torch.Tensor | None  # (N, C / G) float32; None: symmetric around the middle code
    bits: int  # 4 | 8
    num_inputs: int  # K

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.num_inputs

    @property
    def group(self) -> int:
        return self.codes.shape[1] // self.scales.shape[1]

    @property
    def zero(self) -> int:
        """The code of zero in a symmetric matrix; 0 where there are minima."""
        return 1 << (self.bits - 1) if self.minima is None else 0

    def dequantised(self) -> torch.Tensor:
        """The matrix in float32."""
        grouped = self.codes.unflatten(1, (-1, self.group)).float() - self.zero
        wide = grouped * self.scales[:, :, None]
        wide = wide if self.minima is None else wide + self.minima[:, :, None]
        flat: torch.Tensor = wide.flatten(1)
        return flat[:, : self.num_inputs]

    def taken(self, rows: torch.Tensor) -> Self:
        """Some of its rows, or all in another order."""
        minima = None if self.minima is None else self.minima[rows]
        return type(self)(self.codes[rows], self.scales[rows], minima, self.bits, self.num_inputs)

    def is_like(self, other: Self) -> bool:
        """True if both can be rows of one matrix."""
        mine = self.bits, self.group, self.minima is None
        return mine == (other.bits, other.group, other.minima is None)

    @property
    def padded(self) -> Self:
        """With zero outputs up to a multiple of `LANES`."""
        more = -len(self.codes) % LANES
        minima = None if self.minima is None else functional.pad(self.minima, (0, 0, 0, more))
        codes, scales = (functional.pad(t, (0, 0, 0, more)) for t in (self.codes, self.scales))
        return type(self)(codes, scales, minima, self.bits, self.num_inputs)


def concatenated(parts: Sequence[Blocks]) -> Blocks:
    """The rows of several matrices that are alike."""
    minima = [part.minima for part in parts if part.minima is not None]
    return Blocks(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(minima) if minima else None,
        parts[0].bits,
        parts[0].num_inputs,
    )


def quantised(matrix: torch.Tensor, bits: int) -> Blocks:
    """A matrix rounded to symmetric codes with a scale for 32 inputs each; inputs are padded with zeros."""
    wide = functional.pad(matrix.float(), (0, -matrix.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    zero = 1 << (bits - 1)
    if bits == 4:  # as ggml's Q4_0: the number of the greatest magnitude is -8, which wastes no code
        greatest = wide.gather(2, wide.abs().argmax(2, keepdim=True))
        scales = greatest / -zero
    else:
        scales = wide.abs().amax(2, keepdim=True) / (zero - 1)
    scales = scales.half().float()
    least = -zero if bits == 4 else 1 - zero
    whole = (wide / torch.where(scales == 0, 1.0, scales)).round_().clamp_(least, zero - 1)
    codes = (whole + zero).to(torch.uint8).flatten(1)
    return Blocks(codes, scales[:, :, 0], None, bits, matrix.shape[1])


def from_rows(codes: torch.Tensor, scales: torch.Tensor) -> Blocks:
    """Codes of 8 bits with a sign (N, K) and a scale for each row, (N, 1)."""
    num_inputs = codes.shape[1]
    wide = functional.pad(codes, (0, -num_inputs % GROUP)).to(torch.int16) + 128
    of_groups = scales.float().expand(-1, wide.shape[1] // GROUP).contiguous()
    return Blocks(wide.to(torch.uint8), of_groups, None, 8, num_inputs)


def packed(blocks: Blocks) -> tuple[torch.Tensor, float]:
    """Blocks as quantised.cpp reads them, uint8 (N / 16, K / G, bytes), and the factor of their scales.

    Scales are kept in float16, all times a power of two.
    """
    padded = blocks.padded
    greatest = max(float(t.abs().max()) for t in (padded.scales, padded.minima) if t is not None)
    factor = 2.0 ** torch.tensor(max(greatest, 2.0**-100) / _GREATEST_HALF).log2().ceil().item()
    parts = [_halves(t / factor) for t in (padded.scales, padded.minima) if t is not None]
    codes = padded.codes.view(-1, LANES, padded.scales.shape[1], padded.group)
    if padded.bits == 4:
        low, high = codes.unflatten(3, (-1, 2, 4)).unbind(4)  # (P, 16, groups, G / 8, 4)
        codes = (low | high << 4).permute(0, 2, 3, 1, 4)
    else:
        codes = codes.unflatten(3, (-1, 4)).permute(0, 2, 3, 1, 4)
    return torch.cat([*parts, codes.flatten(2)], dim=2), factor


def _halves(numbers: torch.Tensor) -> torch.Tensor:
    """(N, groups) float32 -> (N / 16, groups, 32) bytes of float16."""
    lanes = numbers.half().view(-1, LANES, numbers.shape[1]).transpose(1, 2).contiguous()
    return lanes.view(torch.uint8)
