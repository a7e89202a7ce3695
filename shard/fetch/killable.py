"""Work that can be ended at any moment, since a process of its own does it, which is killed.

The exception that a signal's handler raises comes at any instruction: between the one that takes a library's
lock and the one that will free it, too, and then what is to clear up waits for that lock. So this process has
no handlers. It waits for signals, and clears up when the other one is gone.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable

_TOLD = (signal.SIGINT, signal.SIGTERM)


def run_killable(work: Callable[[], int], clear_up: Callable[[], None], ends_with_stdin: bool = False) -> int:
    """The exit code of `work`; if it was told to end, 128 and the signal. To be called with one thread alone.

    `clear_up` is called unless work came to its end. Where the system ended it, this process ends likewise.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGCHLD, lambda *_: None)  # so that it can be waited for
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_TOLD, signal.SIGCHLD))
    watched, held = os.pipe()  # ends with this process
    worker = os.fork()
    if worker == 0:
        os.close(held)
        _work(work, watched)
    with contextlib.suppress(OSError):  # whichever of both is first
        os.setpgid(worker, worker)
    if ends_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    while (told := signal.sigwait((*_TOLD, signal.SIGCHLD))) == signal.SIGCHLD:
        ended, status = os.waitpid(worker, os.WNOHANG)
        if ended:
            return _code(os.waitstatus_to_exitcode(status), clear_up)
    os.killpg(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    clear_up()
    return 128 + told


def _work(work: Callable[[], int], watched: int) -> None:
    """In a group of its own, with all that it starts; it ends there."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    for number in _TOLD:
        signal.signal(number, signal.SIG_IGN)  # they are for who waits for it
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_TOLD, signal.SIGCHLD))
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    code = 1
    try:
        code = work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_with(watched: int) -> None:
    os.read(watched, 1)
    os.killpg(0, signal.SIGKILL)


def _end_with_stdin() -> None:
    os.read(sys.stdin.fileno(), 1)  # not by its buffer, whose lock the interpreter takes at its end
    os.kill(os.getpid(), signal.SIGTERM)


def _code(status: int, clear_up: Callable[[], None]) -> int:
    if status >= 0:
        return status
    clear_up()
    with contextlib.suppress(OSError):  # SIGKILL cannot be set, and need not be
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
    return 128 - status
