"""Reads single tensors of a checkpoint folder, so that only what is loaded is read."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from shard.models.model_folder import RANDOM_MARK, SINGLE_FILE, ModelUnusable, weight_files


class CheckpointError(OSError):
    """A checkpoint that cannot be read: files or tensors are missing, or have the wrong shape."""


class Checkpoint:
    """Tensors by name, from a folder's safetensors files (one, or several with an index) or a single file."""

    def __init__(self, at: Path):
        self._at = at
        self._files = {path.name: _open(path) for path in ([at] if at.is_file() else _files(at))}
        self._file_of = {name: file for file, handle in self._files.items() for name in handle.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __str__(self) -> str:
        return str(self._at)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors by name, from the files' headers."""
        return {
            name: tuple(self._files[file].get_slice(name).get_shape()) for name, file in self._file_of.items()
        }

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """One tensor, memory-mapped. Raises `CheckpointError` if it is missing or not of `shape`."""
        if name not in self._file_of:
            raise CheckpointError(f"tensor '{name}' is missing in {self._at}")
        tensor: torch.Tensor = self._files[self._file_of[name]].get_tensor(name)
        if shape is not None and tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"tensor '{name}' has shape {tuple(tensor.shape)}, not {shape}, in {self._at}"
            )
        return tensor

    def prefix(self, candidates: tuple[str, ...], probe: str) -> str:
        """The first prefix of `candidates` with which a tensor `probe` exists; checkpoints differ in it."""
        for candidate in candidates:
            if candidate + probe in self:
                return candidate
        raise CheckpointError(f"tensor '{candidates[0]}{probe}' is missing in {self._at}")


def digest(folder: Path) -> str:
    """Digest of a folder by its files' names, sizes and headers, without reading the weights."""
    state = hashlib.sha256()
    weights = [folder / RANDOM_MARK] if (folder / RANDOM_MARK).exists() else _files(folder)
    for path in sorted([*weights, folder / "config.json"]):
        state.update(f"{path.name}:{path.stat().st_size}".encode())
        with path.open("rb") as file:
            state.update(file.read(65536))
    return state.hexdigest()[:12]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}): fetch the model again.") from None


def _files(folder: Path) -> list[Path]:
    try:
        files = weight_files(folder)
    except ModelUnusable as error:
        raise CheckpointError(str(error)) from None
    missing = [file.name for file in files if not file.exists()]
    if missing or not files:
        raise CheckpointError(f"{missing[0] if missing else SINGLE_FILE} is missing in {folder}")
    return files
