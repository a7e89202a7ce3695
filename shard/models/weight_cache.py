"""Weights in use, so that a model prepared beside another one reads only what that one has not.

A decoder asks for tensors and linears by name. What another decoder on the same device got under that name,
from the same files, is given again for as long as somebody has it. The cache keeps nothing alive.
"""

import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch

from shard.ops.plain import Linear, PlainOps

Note = Callable[[int], None]  # told of bytes that are new; may raise, which ends the loading
_Thing = TypeVar("_Thing", torch.Tensor, Linear)


def unnoted(num_bytes: int) -> None:
    """Lets everything be read."""


class WeightCache:
    """What all models of one shard have read, by where it came from and what was made of it."""

    def __init__(self) -> None:
        self._things: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        self._sizes: dict[Hashable, dict[str, int]] = {}  # elements of the tensors in it, by name

    def find(self, key: Hashable) -> tuple[Any, dict[str, int]] | None:
        """A thing in use and the sizes of the tensors in it."""
        thing = self._things.get(key)
        return None if thing is None else (thing, self._sizes[key])

    def put(self, key: Hashable, thing: torch.Tensor | Linear, sizes: dict[str, int]) -> None:
        self._things[key] = thing
        self._sizes[key] = sizes
        if len(self._sizes) > 2 * len(self._things) + 64:  # those of things that are gone
            self._sizes = {kept: sizes for kept, sizes in self._sizes.items() if kept in self._things}


class WeightReader:
    """What one model and its exits are read with: device, dtype and operations, and what they have so far."""

    def __init__(
        self, ops: PlainOps, to: torch.Tensor, weight_cache: WeightCache | None = None, note: Note = unnoted
    ):
        self.ops = ops
        self.phases_ms = {"read": 0.0, "pack": 0.0}
        self._to = to  # an empty tensor of the device and of the type that is stored
        self._cache = weight_cache or WeightCache()
        self._note = note
        self._parts: dict[int, torch.Tensor] = {}  # held, so that an id stays one tensor's

    @property
    def device(self) -> torch.device:
        return self._to.device

    @property
    def empty(self) -> torch.Tensor:
        """An empty tensor of the device and type of what was read, once that is there."""
        return self._to

    @property
    def num_bytes(self) -> dict[Hashable, int]:
        """Of each tensor that the model has, by an id that is the same in all models that share it."""
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

    def once(self, key: tuple[Hashable, ...], make: Callable[[], _Thing], sizes: dict[str, int]) -> _Thing:
        """What `make` makes of tensors, whose sizes it enters by name, or what another model has of it."""
        key = (self.ops.name, self.ops.compute, self._to.dtype, self._to.device, *key)
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
        """Bytes of what is not on its device yet."""
        return 0

    def arrive(self) -> None:
        """Bring to the device what is not there yet."""

    def _take_in(self, new: list[torch.Tensor]) -> None:
        """Tensors that nobody had before."""


class StagingWeightReader(WeightReader):
    """Reads into pinned memory of the host, for a device that has no room until something else has gone."""

    def __init__(self, ops: PlainOps, to: torch.Tensor, weight_cache: WeightCache, note: Note = unnoted):
        super().__init__(ops, to, weight_cache, note)
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
        """Copy everything to the device. A tensor stays the same object: whoever holds it has it there."""
        try:
            while self.staged:
                tensor = self.staged[-1]
                tensor.data = tensor.data.to(self.device, non_blocking=True, copy=True)
                self.staged.pop()  # it has arrived, though memory may end before the next
        finally:
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()

    def _take_in(self, new: list[torch.Tensor]) -> None:
        for tensor in new:
            if self.device.type == "cuda":
                tensor.data = tensor.data.contiguous().pin_memory()
            self.staged.append(tensor)


def source(at: Path) -> Hashable:
    """A checkpoint as it is now, a folder or a file: when its files change, it is another one."""
    files = sorted([at] if at.is_file() else [*at.glob("*.safetensors"), *at.glob("*.json")])
    return tuple((str(file.resolve()), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def _tensors(thing: torch.Tensor | Linear) -> list[torch.Tensor]:
    return [thing] if isinstance(thing, torch.Tensor) else thing.tensors
