"""What this machine's CPU can execute, or less: `HELIOS_CPU` imitates a smaller one, for tests.

Knows no torch: what it sets must be set before torch is loaded. `shard/precision.py` asks both.
"""

import os
import platform
from collections.abc import MutableMapping
from pathlib import Path

import msgspec

SWITCH = "HELIOS_CPU"


class Level(msgspec.Struct, frozen=True):
    """A step of x86-64: each has the instructions of those before it."""

    name: str
    features: tuple[str, ...]  # as Linux names them
    options: tuple[str, ...]  # as compilers name them
    torch: str  # ATEN_CPU_CAPABILITY
    onednn: str  # ONEDNN_MAX_CPU_ISA


LEVELS = (
    Level(
        "baseline",
        ("pni", "ssse3", "sse4_1", "sse4_2", "popcnt"),
        ("-msse3", "-mssse3", "-msse4.1", "-msse4.2", "-mpopcnt"),
        "default",
        "SSE41",
    ),
    Level(
        "avx2",
        ("avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"),
        ("-mavx", "-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt", "-mmovbe"),
        "avx2",
        "AVX2",
    ),
    Level(
        "avx512",
        ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
        (
            *("-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"),
            "-mprefer-vector-width=512",
        ),
        "avx512",
        "AVX512_CORE",
    ),
    Level("avx512_bf16", ("avx512_bf16",), (), "avx512", "AVX512_CORE_BF16"),
)
_CPUINFO = Path("/proc/cpuinfo")


class Cpu(msgspec.Struct, frozen=True):
    """A processor: its architecture and its instructions, as far as they may be used."""

    machine: str  # x86_64 | aarch64 | another
    features: frozenset[str]

    @property
    def levels(self) -> tuple[Level, ...]:
        """Those that it has wholly, the smallest first; none on another architecture than x86-64."""
        count = next(
            (i for i, level in enumerate(LEVELS) if not self.features.issuperset(level.features)), len(LEVELS)
        )
        return LEVELS[:count] if self.machine == "x86_64" else ()

    @property
    def name(self) -> str:
        return self.levels[-1].name if self.levels else self.machine

    @property
    def compiler_options(self) -> list[str]:
        """Instructions that code compiled for it may use: named one by one, never what a compiler finds."""
        return [option for level in self.levels for option in level.options]

    def limited(self, name: str) -> "Cpu":
        """The same with no more than the level `name` has. Raises `ValueError` if it has not even that."""
        names = [level.name for level in self.levels]
        if name not in names:
            raise ValueError(
                f"{SWITCH} must be one of {', '.join(names) or 'none'} on this machine, not {name!r}."
            )
        above = LEVELS[names.index(name) + 1 :]
        return Cpu(self.machine, self.features.difference(*(level.features for level in above), _NOT_BELOW))


# Instructions beside the levels that torch or oneDNN would use, and a machine that is imitated has not.
_NOT_BELOW = frozenset({"amx_tile", "amx_bf16", "amx_fp16", "avx512_fp16", "avx_ne_convert"})


def this_cpu(cpuinfo: Path = _CPUINFO) -> Cpu:
    """The CPU of this machine, or the smaller one that `HELIOS_CPU` names."""
    cpu = real_cpu(cpuinfo)
    name = os.environ.get(SWITCH)
    return cpu.limited(name) if name else cpu


def real_cpu(cpuinfo: Path = _CPUINFO) -> Cpu:
    """As Linux describes it; elsewhere nothing is known of its instructions."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), ":")
    machine = platform.machine().lower()
    return Cpu(
        {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine),
        frozenset(features.split(":")[1].split()),
    )


def imitate(environment: MutableMapping[str, str]) -> None:
    """Limit torch and oneDNN as `HELIOS_CPU` limits us. To be called before torch is loaded."""
    name = environment.get(SWITCH)
    if name:
        level = real_cpu().limited(name).levels[-1]
        environment["ATEN_CPU_CAPABILITY"] = level.torch
        environment["ONEDNN_MAX_CPU_ISA"] = level.onednn
