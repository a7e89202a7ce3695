"""Instructions of this machine's CPU. `HELIOS_CPU` imitates a smaller one, for tests.

Imports no torch, since its settings must precede torch's import. `shard/precision.py` asks both.
"""

import os
import platform
from collections.abc import MutableMapping
from pathlib import Path

import msgspec

SWITCH = "HELIOS_CPU"


class Level(msgspec.Struct, frozen=True):
    """A level of x86-64, which includes the instructions of the levels before it."""

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
    """A processor: its architecture, and the instructions that may be used."""

    machine: str  # x86_64 | aarch64 | another
    features: frozenset[str]

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that it fully supports, the smallest first; none on other architectures than x86-64."""
        count = next(
            (i for i, level in enumerate(LEVELS) if not self.features.issuperset(level.features)), len(LEVELS)
        )
        return LEVELS[:count] if self.machine == "x86_64" else ()

    @property
    def name(self) -> str:
        return self.levels[-1].name if self.levels else self.machine

    @property
    def compiler_options(self) -> list[str]:
        """Compiler flags for its instructions, named one by one instead of found by the compiler."""
        own = [option for level in self.levels for option in level.options]
        return own + [option for feature, option in _EXTRA.items() if feature in self.features]

    def limited(self, name: str) -> "Cpu":
        """The CPU reduced to the level `name`. Raises `ValueError` if it lacks that level."""
        names = [level.name for level in self.levels]
        if name not in names:
            raise ValueError(
                f"{SWITCH} must be one of {', '.join(names) or 'none'} on this machine, not {name!r}."
            )
        above = LEVELS[names.index(name) + 1 :]
        return Cpu(self.machine, self.features.difference(*(level.features for level in above), _NOT_BELOW))


# Instructions outside the levels that torch or oneDNN would use, and that an imitated CPU lacks.
_NOT_BELOW = frozenset(
    {"amx_tile", "amx_bf16", "amx_fp16", "avx512_fp16", "avx_ne_convert", "avx512_vnni", "avx_vnni"}
)
# Products of whole numbers, which processors of one level may have or lack.
_EXTRA = {"avx512_vnni": "-mavx512vnni", "avx_vnni": "-mavxvnni", "asimddp": "-march=armv8.2-a+dotprod"}


def this_cpu(cpuinfo: Path = _CPUINFO) -> Cpu:
    """The CPU of this machine, or the smaller one that `HELIOS_CPU` names."""
    cpu = real_cpu(cpuinfo)
    name = os.environ.get(SWITCH)
    return cpu.limited(name) if name else cpu


def real_cpu(cpuinfo: Path = _CPUINFO) -> Cpu:
    """The CPU as Linux describes it; without known instructions on other systems."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), ":")
    machine = platform.machine().lower()
    return Cpu(
        {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine),
        frozenset(features.split(":")[1].split()),
    )


def imitate(environment: MutableMapping[str, str]) -> None:
    """Limit torch and oneDNN to `HELIOS_CPU`. Call before torch is imported."""
    name = environment.get(SWITCH)
    if name:
        level = real_cpu().limited(name).levels[-1]
        environment["ATEN_CPU_CAPABILITY"] = level.torch
        environment["ONEDNN_MAX_CPU_ISA"] = level.onednn
