"""Where the quantised matrices of a model folder are in its GGUF file. Imports no torch."""

import json
from pathlib import Path

import msgspec

from shard.quality.weight_format import BLOCKS_INDEX

BLOCK_SIZES = {  # numbers and bytes of a block, by ggml's names
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q6_K": (256, 210),
}


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a matrix (N, K) is in the file. `heads`: its rows are in ggml's order for this many heads."""

    kind: str
    offset: int
    shape: tuple[int, int]
    heads: int | None = None

    @property
    def num_bytes(self) -> int:
        numbers, num_bytes = BLOCK_SIZES[self.kind]
        return self.shape[0] * self.shape[1] // numbers * num_bytes


def write_index(folder: Path, places: dict[str, Place]) -> None:
    """Write the index of a folder's GGUF file."""
    plain = {name: msgspec.to_builtins(place) for name, place in places.items()}
    (folder / BLOCKS_INDEX).write_text(json.dumps(plain, indent=0))


def read_index(folder: Path) -> dict[str, Place]:
    """The index, by names in safetensors. Raises `OSError` or `msgspec.DecodeError`."""
    return msgspec.json.decode((folder / BLOCKS_INDEX).read_bytes(), type=dict[str, Place])
