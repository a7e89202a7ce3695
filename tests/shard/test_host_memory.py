"""What host and container say of their memory; the tighter one counts."""

from pathlib import Path

import pytest

from shard.host_memory import available_bytes

GIB = 1 << 30


def written(folder: Path, limit: str | None) -> tuple[Path, Path]:
    meminfo = folder / "meminfo"
    meminfo.write_text(f"MemTotal: {9 << 20} kB\nMemAvailable: {4 << 20} kB\n")
    if limit is not None:
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text(f"{3 * GIB}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    return meminfo, folder


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, 4 * GIB), ("max", 4 * GIB), (str(9 * GIB), 4 * GIB), (str(5 * GIB), 3 * GIB), ("5", 0)],
)
def test_the_tighter_one_counts(tmp_path: Path, limit: str | None, expected: int) -> None:
    assert available_bytes(*written(tmp_path, limit)) == expected


def test_where_nobody_says_nothing_is_known(tmp_path: Path) -> None:
    assert available_bytes(tmp_path / "meminfo", tmp_path) is None


def test_this_host_says_something() -> None:
    assert available_bytes() is None or available_bytes() > 0
