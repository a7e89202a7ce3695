"""The memory of KV blocks: one pool per layer, so that freeing a layer frees its memory.

On a CPU a pool is reserved at its largest size and takes memory page by page, as blocks are first written;
blocks beyond the limit give their pages back. On other devices a pool has a fixed size and is rebuilt.
"""

import mmap
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod

import numpy as np
import torch

from shard.ops.batch import KV, Heads
from shard.ops.plain import PlainOps

CPU_KV_CACHE_BYTES = 1 << 30
CUDA_MEMORY_SHARE = 0.9  # of free memory after loading weights; the rest is for activations
CUDA_ACTIVATION_BYTES = 1 << 30
HUGE_PAGE_BYTES = 2 << 20  # smallest piece given back: a page that holds blocks in use is not split
_MAP_NORESERVE = 0x4000  # Linux; mmap names it from Python 3.13 on
_MADV_POPULATE_WRITE = 23  # Linux 5.14


class KVCache:
    """Pools of `num_blocks` blocks for each of `num_layers` layers."""

    def __init__(self, ops: PlainOps, heads: Heads, num_layers: int, num_blocks: int, like: torch.Tensor):
        self.num_blocks = num_blocks
        self._ops = ops
        self._heads = heads
        self._like = like
        self._regions: list[Region] = []
        self._num_touched = 0  # pages
        self.layers: list[KV] = [self._pools(num_blocks) for _ in range(num_layers)]

    @property
    def is_elastic(self) -> bool:
        """True if memory follows the blocks in use without a rebuild."""
        return is_elastic(self._like.device)

    def touch(self) -> None:
        """Take all memory now, so that no step waits for it."""
        for kv in self.layers:
            kv.keys.zero_()
            kv.values.zero_()
        self._num_touched = self._num_pages(self.num_blocks)

    def touch_ahead(self, num_reached: int, num_blocks: int) -> Iterator[None]:
        """Take memory, one page after the other, for the blocks that come after the first `num_reached`.

        At most for `num_blocks`. All pools reach a new huge page at about the same block: taken only then,
        the pages of all pools would delay one step.
        """
        ahead = self._regions[0].page_blocks if self._regions else 0
        for page in range(self._num_touched, self._num_pages(min(num_reached + ahead, num_blocks))):
            of_each, region = divmod(page, len(self._regions))
            self._regions[region].touch(of_each)
            self._num_touched = page + 1
            yield

    def release(self, blocks: list[int]) -> None:
        """Give back the memory of unused blocks, where enough of them are adjacent."""
        for first, end in _runs(blocks):
            for region in self._regions:
                region.release(first * region.block_bytes, end * region.block_bytes)

    def copy(self, other: "KVCache", number_of: Mapping[int, int]) -> None:
        """Copy blocks of another cache whose first layers are these; `number_of`: our block by its block."""
        its = torch.tensor(list(number_of), dtype=torch.int64, device=self._like.device)
        ours = torch.tensor(list(number_of.values()), dtype=torch.int64, device=self._like.device)
        for kv, source in zip(self.layers, other.layers, strict=False):
            kv.keys[ours], kv.values[ours] = source.keys[its], source.values[its]

    def rebuild(self, kept: list[int], num_blocks: int) -> None:
        """Rebuild the pools with another size, layer by layer; the kept blocks come first, in this order.

        Each old pool is freed, back to the device, before its new one is made: torch would cut small pools
        from cached large ones, whose remainder could not serve larger pools.
        """
        order = torch.tensor(kept, dtype=torch.int64, device=self._like.device)
        nothing = self._like.new_empty(0)
        for i in range(len(self.layers)):
            keys, values = self.layers[i].keys[order], self.layers[i].values[order]
            self.layers[i] = KV(nothing, nothing)
            if self._like.is_cuda:
                torch.cuda.empty_cache()
            after = self._pools(num_blocks)
            after.keys[: len(kept)], after.values[: len(kept)] = keys, values
            self.layers[i] = after
        self.num_blocks = num_blocks

    def _num_pages(self, num_blocks: float) -> int:
        """Huge pages of all pools under the first `num_blocks` blocks of each."""
        if not self._regions:
            return 0
        return int(num_blocks / self._regions[0].page_blocks * len(self._regions))

    def _pools(self, num_blocks: int) -> KV:
        if not self.is_elastic:
            return self._ops.allocate(num_blocks, self._heads, self._like)
        keys, values = (
            Region(shape, self._like.dtype)
            for shape in self._ops.pool_shapes(num_blocks, self._heads, self._like.dtype)
        )
        self._regions += [keys, values]
        return KV(keys.tensor, values.tensor)


def is_elastic(device: torch.device) -> bool:
    """True where memory can be reserved without being taken."""
    return device.type == "cpu" and sys.platform == "linux"


class Region:
    """A zeroed tensor whose pages take memory once written. Its first dimension counts blocks."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype):
        self.block_bytes = prod(shape[1:]) * dtype.itemsize
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._pages = mmap.mmap(-1, shape[0] * self.block_bytes, flags)
        self._pages.madvise(mmap.MADV_HUGEPAGE)  # attention over scattered blocks gains 7%
        self.tensor = torch.frombuffer(self._pages, dtype=dtype).view(shape)

    @property
    def page_blocks(self) -> float:
        """Blocks to a huge page."""
        return HUGE_PAGE_BYTES / self.block_bytes

    def touch(self, page: int) -> None:
        """Take the memory of one huge page, keeping its content."""
        start = page * HUGE_PAGE_BYTES
        length = min(HUGE_PAGE_BYTES, len(self._pages) - start)
        if length > 0:
            with suppress(OSError):  # kernels before 5.14: taken when written
                self._pages.madvise(_MADV_POPULATE_WRITE, start, length)

    def release(self, start: int, end: int) -> None:
        """Give back whole pages between two byte offsets; they read as zeros again."""
        start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if end - start >= HUGE_PAGE_BYTES:
            self._pages.madvise(mmap.MADV_DONTNEED, start, end - start)


def block_bytes(ops: PlainOps, heads: Heads, num_layers: int, like: torch.Tensor) -> int:
    """Bytes that one block takes in all layers together, padding and scales included."""
    return num_layers * sum(map(prod, ops.pool_shapes(1, heads, like.dtype))) * like.element_size()


def free_bytes(device: torch.device) -> int:
    """Memory that KV may take on a device when no size was asked for."""
    if device.type != "cuda":
        return CPU_KV_CACHE_BYTES
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return max(0, int(free * CUDA_MEMORY_SHARE) - CUDA_ACTIVATION_BYTES)


def check_spare(device: torch.device, num_bytes: int) -> None:
    """Raises `MemoryError` if a device is known to have less free memory."""
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if num_bytes > free:
        torch.cuda.empty_cache()  # torch's cached memory may be fragmented; free memory is not
        free, _ = torch.cuda.mem_get_info(device)
    if num_bytes > free:
        raise MemoryError(f"{device} has {free} bytes to give, and {num_bytes} are needed.")


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn torch's out-of-memory errors into `MemoryError` with one sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". GPU")[0].replace(". ", ": ")
        raise MemoryError(f"{reason}; load fewer layers, or leave it more of the device's memory.") from error


def _runs(blocks: list[int]) -> Iterator[tuple[int, int]]:
    """(first, end) of each run of consecutive numbers."""
    if not blocks:
        return
    numbers = np.sort(np.array(blocks))
    breaks = np.flatnonzero(np.diff(numbers) > 1) + 1
    for run in np.split(numbers, breaks):
        yield int(run[0]), int(run[-1]) + 1
