"""The machine that gave the figures, as `lscpu` tells it."""

import os
import platform
import shutil
import subprocess

import msgspec

LSCPU_S = 10.0


class Machine(msgspec.Struct, frozen=True):
    """`load` is the average number of running processes over a minute, before the benchmark began."""

    cpu: str
    flags: str
    num_cores: int  # that this process may use
    load: float
    imitates: str  # HELIOS_CPU: the lesser CPU that Helios takes this one for

    @property
    def is_busy(self) -> bool:
        """True if other work would compete with the servers."""
        return self.load > 0.25 * self.num_cores


def this_machine() -> Machine:
    told = _lscpu()
    return Machine(
        cpu=told.get("Model name") or platform.processor() or platform.machine(),
        flags=told.get("Flags", ""),
        num_cores=num_cores(),
        load=round(os.getloadavg()[0], 2),
        imitates=os.environ.get("HELIOS_CPU", ""),
    )


def num_cores() -> int:
    """Cores that this process and its children may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lscpu() -> dict[str, str]:
    """Rows of `lscpu`; none where there is no such program."""
    if shutil.which("lscpu") is None:
        return {}
    said = subprocess.run(
        ["lscpu"],
        capture_output=True,
        text=True,
        timeout=LSCPU_S,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    ).stdout
    rows = (line.partition(":") for line in said.splitlines())
    return {name.strip(): value.strip() for name, _, value in rows}
