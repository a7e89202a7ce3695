"""Available memory of the host, by Linux and the container."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Bytes that can be allocated without swapping; None if unknown."""
    known = [size for size in (_of_host(meminfo), _of_container(cgroup)) if size is not None]
    return min(known, default=None)


def _of_host(meminfo: Path) -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _of_container(cgroup: Path) -> int | None:
    """Bytes left to a control group (version 2). Page cache counts as free."""
    limit, used, details = (cgroup / f"memory.{name}" for name in ("max", "current", "stat"))
    try:
        most = int(limit.read_text())  # "max": there is no limit
        counts = dict(line.split() for line in details.read_text().splitlines())
        return max(0, most - int(used.read_text()) + int(counts.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
