"""Joules that a shard spends while it has work: by hardware counters, else time times a stated power.

GPUs are read through NVML, processors through RAPL. Both counters include the work of other processes on the
device. Knows no sockets, and torch only to tell GPUs apart.
"""

import ctypes
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from shard.messages import ShardConfig, StepOutput

POWERCAP = Path("/sys/class/powercap")
_RAPL_DOMAIN = re.compile(r"intel-rapl:\d+(:\d+)?")  # AMD's too; other entries repeat the same energy
_READ_EVERY_S = 0.05  # counters are no finer, and reading a GPU's takes time


class NoEnergy(ValueError):
    """Joules are required but cannot be measured. The message is one sentence."""


class Counter(Protocol):
    """A source of rising totals of joules."""

    source: str  # name shown to users

    def joules(self) -> float: ...


class PowerModel:
    """Time multiplied by a stated power."""

    def __init__(self, watts: float, clock: Callable[[], float] = time.monotonic):
        self.source = f"a stated power of {watts:g} W"
        self._watts = watts
        self._clock = clock

    def joules(self) -> float:
        return self._watts * self._clock()


class Rapl:
    """Energy of processor packages and memory, in proportion to the cores that this shard uses.

    Raises `OSError` if counters are missing or readable by root only.
    """

    source = "RAPL"

    def __init__(self, folder: Path, share: float):
        domains = [_Domain(path) for path in sorted(folder.iterdir()) if _RAPL_DOMAIN.fullmatch(path.name)]
        self._domains = [domain for domain in domains if domain.is_counted]
        if not self._domains:
            raise OSError(f"{folder} has no RAPL counters")
        self._share = share

    def joules(self) -> float:
        return self._share * sum(domain.joules() for domain in self._domains)


class _Domain:
    """One RAPL counter, which wraps around."""

    def __init__(self, folder: Path):
        name = (folder / "name").read_text().strip()
        self.is_counted = name.startswith("package") or name == "dram"
        self._file = folder / "energy_uj"
        self._range_uj = int((folder / "max_energy_range_uj").read_text())
        self._last_uj = self._read() if self.is_counted else 0
        self._total_uj = 0

    def joules(self) -> float:
        now = self._read()
        self._total_uj += (now - self._last_uj) % (self._range_uj + 1)
        self._last_uj = now
        return self._total_uj / 1e6

    def _read(self) -> int:
        return int(self._file.read_text())


class Nvml:
    """One GPU's counter. Raises `OSError` without one, as before Volta."""

    source = "NVML"

    def __init__(self, library: Any, uuid: str):
        self._library = library
        self._handle = ctypes.c_void_p()
        self._check(library.nvmlInit_v2())
        self._check(library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(self._handle)))
        self.joules()

    def joules(self) -> float:
        total_mj = ctypes.c_ulonglong()
        self._check(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(total_mj)))
        return total_mj.value / 1000

    def _check(self, status: int) -> None:
        if status != 0:
            raise OSError(f"NVML says {status}")


class Meter:
    """Adds joules to steps' outputs. Without a `counter` they stay unknown."""

    def __init__(self, counter: Counter | None, clock: Callable[[], float] = time.monotonic):
        self.source = counter.source if counter is not None else None
        self._counter = counter
        self._clock = clock
        self._last: float | None = None  # total in joules; None: idle
        self._read_at = 0.0

    def begin(self) -> None:
        """Note that a step begins. Energy spent while idle is left out."""
        if self._counter is not None and self._last is None:
            self._last, self._read_at = self._counter.joules(), self._clock()

    def end(self, output: StepOutput) -> StepOutput:
        """The output with joules since the last reading: often 0, but right over many steps."""
        if self._counter is None or self._last is None:
            return output
        is_over = output.num_sequences == 0
        if not is_over and self._clock() - self._read_at < _READ_EVERY_S:
            return msgspec.structs.replace(output, joules=0.0)
        total, self._read_at = self._counter.joules(), self._clock()
        joules, self._last = total - self._last, None if is_over else total
        return msgspec.structs.replace(output, joules=joules)


def counter_of(config: ShardConfig, powercap: Path = POWERCAP) -> Counter | None:
    """A hardware counter if possible, else one by the stated power, else None.

    Raises `NoEnergy` instead of returning None if the configuration needs joules.
    """
    try:
        if config.device.startswith("cuda"):
            return Nvml(ctypes.CDLL("libnvidia-ml.so.1"), _uuid(config.device))
        if config.device == "cpu":
            num_cores = os.cpu_count() or 1
            return Rapl(powercap, min(1.0, (config.num_threads or num_cores) / num_cores))
    except OSError:
        pass  # missing, or not readable
    if config.watts is not None:
        return PowerModel(config.watts)
    if config.needs_energy:
        raise NoEnergy(
            "Joules are needed, by the objective or a limit of watts, but nothing here tells them "
            "(neither NVML nor RAPL): state the power of a busy shard with --watts."
        )
    return None


def _uuid(device: str) -> str:
    import torch

    return f"GPU-{torch.cuda.get_device_properties(torch.device(device)).uuid}"
