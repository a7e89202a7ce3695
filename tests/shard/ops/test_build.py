"""The kernels' library: kept by what it was made for, and no reason not to serve when it cannot be made."""

import logging
import shutil
import subprocess
from pathlib import Path

import pytest

from shard.cpu import Cpu
from shard.ops import build as building
from shard.ops.build import COMPILE_FLAGS, FOLDER, SOURCES, build
from shard.precision import usable_cpu

CROSS_COMPILER = "aarch64-linux-gnu-g++"


@pytest.fixture
def quick_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of the kernels something that compiles at once."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler on this machine")
    source = tmp_path / "quick.cpp"
    source.write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setattr(building, "FOLDER", tmp_path)
    monkeypatch.setattr(building, "SOURCES", {"quick.cpp": []})
    monkeypatch.setattr(building, "HEADERS", ())
    return source


def put_compiler(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `g++` be a shell script, and the only compiler."""
    folder.mkdir()
    for name in building.COMPILERS:
        (folder / name).write_text("#!/bin/sh\n" + script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_second_build_is_read_from_the_cache(quick_source, tmp_path: Path):
    assert build(tmp_path, usable_cpu()).answer() == 42
    (library,) = tmp_path.glob("kernels-*.so")
    first = library.stat()
    assert build(tmp_path, usable_cpu()).answer() == 42
    assert (library.stat().st_ino, library.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)


def test_a_library_is_of_one_cpu_s_instructions(quick_source, tmp_path: Path):
    cpu = usable_cpu()
    other = Cpu(cpu.machine, cpu.features | {"another"})
    build(tmp_path, cpu)
    build(tmp_path, other)
    assert len(list(tmp_path.glob("kernels-*.so"))) == 2


@pytest.mark.parametrize(
    "damaged",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],  # to map it is to be ended by SIGBUS
        lambda content: content[:4096] + bytes(4096) + content[8192:],
        lambda content: b"not a library",
    ],
)
def test_a_library_that_is_not_whole_is_made_again(quick_source, tmp_path: Path, damaged):
    build(tmp_path, usable_cpu())
    (library,) = tmp_path.glob("kernels-*.so")
    content = library.read_bytes()
    library.unlink()
    library.write_bytes(damaged(content))
    assert build(tmp_path, usable_cpu()).answer() == 42
    assert library.read_bytes() != damaged(content)


def test_a_library_without_its_checksum_is_made_again(quick_source, tmp_path: Path, monkeypatch):
    build(tmp_path, usable_cpu())
    (checksum,) = tmp_path.glob("kernels-*.sha256")
    checksum.unlink()
    assert build(tmp_path, usable_cpu()).answer() == 42
    assert checksum.is_file()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 1", "exit status 1"),
        ("[ $1 = --version ] || { echo 'x.cpp:1: error: no such thing' >&2; exit 1; }", "no such thing"),
        ("[ $1 = --version ] || { sleep 100 & wait; }", "was not done in 1 s"),
    ],
)
def test_a_compiler_that_fails_or_hangs_leaves_plain_operations_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, script: str, why: str
):
    put_compiler(tmp_path / "bin", script, monkeypatch)
    monkeypatch.setattr(building, "COMPILE_TIMEOUT_S", 1)
    assert_is_missing(tmp_path, caplog, why)


def test_without_a_compiler_there_is_no_library(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_is_missing(tmp_path, caplog, "no C++ compiler")


def test_in_a_cache_that_cannot_be_written_there_is_no_library(quick_source, tmp_path: Path, caplog):
    (tmp_path / "cache").write_text("a file where a folder is wanted")
    assert_is_missing(tmp_path / "cache", caplog, "cannot be compiled in")


def assert_is_missing(cache: Path, caplog: pytest.LogCaptureFixture, why: str) -> None:
    with caplog.at_level(logging.WARNING, "helios.shard"):
        assert build(cache, usable_cpu()) is None
    (record,) = caplog.records
    assert why in record.getMessage()


@pytest.mark.parametrize("source", SOURCES)
def test_the_kernels_compile_for_aarch64(source: str, tmp_path: Path):
    compiler = shutil.which(CROSS_COMPILER)
    if compiler is None:
        pytest.skip(f"{CROSS_COMPILER} is not installed")
    flags = [*COMPILE_FLAGS, *SOURCES[source], "-O1", "-Werror"]
    command = [compiler, *flags, "-c", str(FOLDER / source), "-o", str(tmp_path / "kernels.o")]
    compiled = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert compiled.returncode == 0, compiled.stderr
