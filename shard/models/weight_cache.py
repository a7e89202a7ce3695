"""Shares weights between the models of a shard, so that a new model reads only what others do not have.

A decoder asks for tensors and linears by name. The cache returns the object that another decoder on the same
device got under that name from the same files, while someone holds it. The cache keeps nothing alive.
"""

import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch

from shard.ops.blocks import Blocks
from shard.ops.plain import Linear, PlainOps
from shard.quality.weight_format import GGUF, INT4, INT8, NONE

# Digits of activations: weights that were rounded at load are further off than one digit is.
DIGITS = {GGUF: 2, INT8: 1, INT4: 1}
Note = Callable[[int], None]  # receives the number of new bytes; may raise to stop loading
_Thing = TypeVar("_Thing", torch.Tensor, Linear)


def unnoted(num_bytes: int) -> None:
    """A `Note` that never stops loading."""


class WeightCache:
    """Weak references to all weights of one shard's models, by source and kind."""

    def __init__(self) -> None:
        self._things: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        self._sizes: dict[Hashable, dict[str, int]] = {}  # by key: number of elements of each tensor

    def find(self, key: Hashable) -> tuple[Any, dict[str, int]] | None:
        """An object in use, and the sizes of its tensors."""
        thing = self._things.get(key)
        return None if thing is None else (thing, self._sizes[key])

    def put(self, key: Hashable, thing: torch.Tensor | Linear, sizes: dict[str, int]) -> None:
        self._things[key] = thing
        self._sizes[key] = sizes
        if len(self._sizes) > 2 * len(self._things) + 64:  # drop sizes of freed objects
            self._sizes = {kept: sizes for kept, sizes in self._sizes.items() if kept in self._things}


class WeightReader:
    """Reads one model and its exits: device, dtype, operations, and the weights read so far."""

    def __init__(
        self,
        ops: PlainOps,
        to: torch.Tensor,
        weight_cache: WeightCache | None = None,
        note: Note = unnoted,
        weights: str = NONE,
    ):
        self.ops = ops
        self.weights = weights  # the format of matrices: see weight_format.py
        self.phases_ms = {"read": 0.0, "pack": 0.0}
        self._to = to  # an empty tensor of the device and storage type
        self._cache = weight_cache or WeightCache()
        self._note = note
        self._parts: dict[int, torch.Tensor] = {}  # kept alive so that ids stay unique

    @property
    def device(self) -> torch.device:
        return self._to.device

    @property
    def empty(self) -> torch.Tensor:
        """An empty tensor of the device and type that weights have once they have arrived."""
        return self._to

    @property
    def num_bytes(self) -> dict[Hashable, int]:
        """Bytes of each of the model's tensors, by an id common to all models that share it."""
        return {id: part.numel() * part.element_size() for id, part in self._parts.items()}

    def convert(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor from a file, on the device: matrices as stored, vectors as computed with."""
        started = time.perf_counter()
        converted = tensor.to(self._to)
        if tensor.ndim == 1:
            converted = self.ops.widened(converted)
        self.phases_ms["read"] += (time.perf_counter() - started) * 1000
        return converted

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """A linear with constant weights. Packing them is often what touches the file's pages first."""
        started = time.perf_counter()
        linear = self.ops.linear(weight, bias)
        self.phases_ms["pack"] += (time.perf_counter() - started) * 1000
        return linear

    def quantised(self, blocks: Blocks, bias: torch.Tensor | None = None) -> Linear:
        """A linear with quantised weights."""
        started = time.perf_counter()
        linear = self.ops.quantised(blocks, bias, DIGITS[self.weights])
        self.phases_ms["pack"] += (time.perf_counter() - started) * 1000
        return linear

    def once(self, key: tuple[Hashable, ...], make: Callable[[], _Thing], sizes: dict[str, int]) -> _Thing:
        """Another model's object under `key`, or a new one by `make`, which enters its tensors' sizes."""
        key = (self.ops.name, self.ops.compute, self._to.dtype, self._to.device, self.weights, *key)
        found = self._cache.find(key)
        if found is None:
            before = set(sizes)
            thing = make()
            self._cache.put(key, thing, {name: size for name, size in sizes.items() if name not in before})
            new = [tensor for tensor in _tensors(thing) if id(tensor) not in self._parts]
            self._note(sum(tensor.numel() * tensor.element_size() for tensor in new))
            self._take_in(new)
        else:
            thing = found[0]
            sizes |= found[1]
        self._parts |= {id(tensor): tensor for tensor in _tensors(thing)}
        return thing

    @property
    def num_staged_bytes(self) -> int:
        """Bytes of weights that are not on their device yet."""
        return 0

    def arrive(self) -> None:
        """Copy staged weights to the device."""

    def _take_in(self, new: list[torch.Tensor]) -> None:
        """Count new tensors."""


class StagingWeightReader(WeightReader):
    """Reads into pinned host memory, for a device that has no room until another model is freed."""

    def __init__(
        self,
        ops: PlainOps,
        to: torch.Tensor,
        weight_cache: WeightCache,
        note: Note = unnoted,
        weights: str = NONE,
    ):
        super().__init__(ops, to, weight_cache, note, weights)
        self.staged: list[torch.Tensor] = []

    @property
    def num_staged_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.staged)

    def convert(self, tensor: torch.Tensor) -> torch.Tensor:
        started = time.perf_counter()
        converted = tensor.to(self._to.dtype)
        if tensor.ndim == 1:
            converted = self.ops.widened(converted)
        self.phases_ms["read"] += (time.perf_counter() - started) * 1000
        return converted

    def arrive(self) -> None:
        """Copy everything to the device. Tensors stay the same objects, so that holders see the copies."""
        try:
            while self.staged:
                tensor = self.staged[-1]
                tensor.data = tensor.data.to(self.device, non_blocking=True, copy=True)
                self.staged.pop()  # it has arrived; the next may fail for lack of memory
        finally:
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()

    def _take_in(self, new: list[torch.Tensor]) -> None:
        for tensor in new:
            if self.device.type == "cuda":
                tensor.data = tensor.data.contiguous().pin_memory()
            self.staged.append(tensor)


def source(at: Path) -> Hashable:
    """A key of a checkpoint, folder or file; it changes with the files."""
    files = sorted([at] if at.is_file() else [*at.glob("*.safetensors"), *at.glob("*.json")])
    return tuple((str(file.resolve()), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def _tensors(thing: torch.Tensor | Linear) -> list[torch.Tensor]:
    return [thing] if isinstance(thing, torch.Tensor) else thing.tensors
