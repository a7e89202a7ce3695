"""Resources of this machine, found without torch: GPUs, cores, memory, open files."""

import importlib.util
import os
import resource
from collections.abc import Mapping
from pathlib import Path

import msgspec

from shard.host_memory import available_bytes

_ENOUGH_FILES = 2**17


class Machine(msgspec.Struct, frozen=True):
    num_gpus: int
    num_cores: int
    available_bytes: int  # memory available to new processes without swapping
    max_files: int = 1024  # open files allowed per process, connections included


def inspect(environment: Mapping[str, str]) -> Machine:
    max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Machine(_num_gpus(environment), len(os.sched_getaffinity(0)), _available_bytes(), max_files)


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard one, for this process and its children.

    The limit that processes begin with is often 1024, for the sake of programs that use select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _num_gpus(environment: Mapping[str, str]) -> int:
    """Number of GPUs that a shard would see; 0 when the installed torch was built without CUDA."""
    if not torch_has_cuda():
        return 0
    present = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    named = [name for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    return min(present, len(named))


def torch_has_cuda() -> bool:
    """Decided by torch's files: importing torch takes seconds and hundreds of megabytes."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    return (Path(spec.origin).parent / "lib" / "libtorch_cuda.so").exists()


def _available_bytes() -> int:
    """What the kernel and the container leave; free pages where neither says."""
    available = available_bytes()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if available is None else available
