"""Atomic creation of folders: filled beside their place, then renamed into it."""

import contextlib
import fcntl
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

_PREFIX = ".partial-"
_TRIES = 20
_PAUSE_S = 0.02


def make_once(folder: Path, is_complete: Callable[[Path], bool], make: Callable[[Path], None]) -> Path:
    """Make `folder` if incomplete: `make` fills a temporary folder, which then takes the name.

    Concurrent processes wait for the first one and find the folder complete.
    """
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.parent / ".lock"):
        if not is_complete(folder):
            _make(folder, make)
    return folder


def clear_up(cache: Path) -> None:
    """Remove what killed runs left in the folders of `cache`, unless someone makes one there now."""
    for parent in {left.parent for left in cache.glob(f"*/{_PREFIX}*")}:
        with contextlib.suppress(OSError), (parent / ".lock").open("w") as file:
            if _try_lock(file):
                _remove_left(parent)


def _try_lock(file: IO[str]) -> bool:
    """A process that was killed while it started another one frees its lock a moment after its end."""
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_PAUSE_S)
    return False


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    _remove_left(folder.parent)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder.parent) as temporary:
        made = Path(temporary) / folder.name
        made.mkdir()
        make(made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def _remove_left(parent: Path) -> None:
    """Remove folders of killed runs, whose children may be about to end. The caller holds the lock."""
    for _ in range(_TRIES):
        left = list(parent.glob(f"{_PREFIX}*"))
        if not left:
            return
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # the lock is freed when its process ends
            print(f"Waiting for another process that fills {path.parent}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
