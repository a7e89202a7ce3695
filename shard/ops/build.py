"""Compiles the kernels for this CPU's instructions, and caches the library.

The cache may move between machines (a home on NFS, an image, a snapshot): a library's name includes the
instructions, so that none is loaded that this CPU cannot execute.
"""

import ctypes
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import torch

from shard.cpu import Cpu

log = logging.getLogger("helios.shard")

FOLDER = Path(__file__).parent
SOURCES: dict[str, list[str]] = {
    "kernels.cpp": [],
    "products.cpp": ["-fno-associative-math"],
    "quantised.cpp": ["-fno-associative-math"],
}
HEADERS = ("vectors.h", "integers.h")
COMPILE_FLAGS = ["-O3", "-ffast-math", "-fopenmp", "-fPIC", "-std=c++17"]
# Tuning flags only select among the allowed instructions, so they may depend on the machine.
TUNE_FLAGS = ["-mtune=native"]
CHECKSUM = ".sha256"
COMPILERS = ("g++", "c++")
COMPILE_TIMEOUT_S = 120  # it takes ten seconds on an idle core
_ASK_TIMEOUT_S = 20
_KILL_TIMEOUT_S = 10
_LEAST_FREE_BYTES = 1 << 20  # of a disk that has room for what is made here


class BuildFailed(Exception):
    """There is no library. The message continues the sentence 'plain torch operations run, since'."""


def build(cache: Path, cpu: Cpu) -> ctypes.CDLL | None:
    """The compiled kernels, cached if built before; None, with one warning, if they cannot be built."""
    try:
        return _find_or_make(cache, cpu)
    except BuildFailed as error:
        reason = str(error)  # a record with the error would keep the models alive that its traceback sees
        log.warning("Plain torch operations run, several times slower, since %s.", reason)
        return None


def _find_or_make(cache: Path, cpu: Cpu) -> ctypes.CDLL:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise BuildFailed(f"no C++ compiler ({' or '.join(COMPILERS)}) is there")
    flags = [*COMPILE_FLAGS, *TUNE_FLAGS, *cpu.compiler_options]
    library = cache / f"kernels-{_digest(compiler, flags, cpu)}.so"
    if library.is_file():
        try:
            if _is_whole(library):
                return ctypes.CDLL(str(library))
        except OSError:  # built for another C library
            pass
        log.info("%s cannot be loaded and is made again.", library)
    _compile(compiler, flags, library)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildFailed(f"what {compiler} made cannot be loaded ({error})") from None


def _is_whole(library: Path) -> bool:
    """The library's checksum is right: loading a damaged one could crash the process."""
    checksum = library.with_suffix(CHECKSUM)
    return checksum.is_file() and checksum.read_text() == _checksum(library)


def _checksum(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _compile(compiler: str, flags: list[str], library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            objects = []
            for name, own in SOURCES.items():
                objects.append(f"{folder}/{name}.o")
                _run([compiler, *flags, *own, "-c", str(FOLDER / name), "-o", objects[-1]], Path(folder))
            # Linked without -ffast-math, which would make the whole process flush denormals, and against
            # torch's own OpenMP, so that both share one pool of threads.
            shared = f"{folder}/kernels.so"
            _run([compiler, "-shared", *objects, *_openmp(), "-lm", "-o", shared], Path(folder))
            checksum = Path(folder) / "checksum"
            checksum.write_text(_checksum(Path(shared)))
            os.replace(shared, library)
            os.replace(checksum, library.with_suffix(CHECKSUM))
    except OSError as error:
        raise BuildFailed(f"the kernels cannot be compiled in {library.parent} ({error})") from None


def _run(command: list[str], folder: Path) -> None:
    """Run a compiler, with its children, within a time limit. Raises `BuildFailed`."""
    said = folder / "said"
    with said.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = process.wait(COMPILE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise BuildFailed(f"{command[0]} was not done in {COMPILE_TIMEOUT_S} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(_KILL_TIMEOUT_S)
    if status != 0:
        lines = said.read_text(errors="replace").splitlines() or [_why_silent(status, folder)]
        first = next((line for line in lines if "error" in line), lines[0])
        raise BuildFailed(f"{command[0]} failed ({first.strip()})")


def _why_silent(status: int, folder: Path) -> str:
    full = shutil.disk_usage(folder).free < _LEAST_FREE_BYTES
    return f"exit status {status}{', and the disk is full' if full else ''}"


def _openmp() -> list[str]:
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(bundled[0])] if bundled else ["-lgomp"]


def _digest(compiler: str, flags: list[str], cpu: Cpu) -> str:
    """Digest of a build: source, flags, compiler, torch and the processor's instructions."""
    parts = [
        *((FOLDER / name).read_text() for name in (*SOURCES, *HEADERS)),
        *(flag for own in SOURCES.values() for flag in own),
        *flags,
        _version(compiler),
        torch.__version__,
        cpu.machine,
        *sorted(cpu.features),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _version(compiler: str) -> str:
    """A compiler's name and version, if it reports them."""
    try:
        asked = subprocess.run(
            [compiler, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        raise BuildFailed(f"{compiler} does not tell its version") from None
    return asked.stdout
