"""Runs work in a child process, which can be killed at any moment.

An exception from a signal handler may come at any instruction, also while a library holds a lock, on which
the clean-up would then wait. So this process has no handlers: it waits for signals, and cleans up once the
child is gone.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_END_POLLS = 100
_END_POLL_S = 0.01


def run_killable(work: Callable[[], int], clear_up: Callable[[], None], ends_with_stdin: bool = False) -> int:
    """Run `work`; returns its exit code, or 128 plus the signal that ended it. Call while single-threaded.

    Calls `clear_up` unless `work` finished. If the system killed the child, this process ends the same way.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGCHLD, lambda *_: None)  # so that `sigwait` receives it
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_SIGNALS, signal.SIGCHLD))
    watched, held = os.pipe()  # ends with this process
    worker = os.fork()
    if worker == 0:
        os.close(held)
        _work(work, watched)
    with contextlib.suppress(OSError):  # the other process may have done it
        os.setpgid(worker, worker)
    if ends_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    while (received := signal.sigwait((*_SIGNALS, signal.SIGCHLD))) == signal.SIGCHLD:
        ended, status = os.waitpid(worker, os.WNOHANG)
        if ended:
            return _code(worker, os.waitstatus_to_exitcode(status), clear_up)
    os.killpg(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    _await_end(worker)
    clear_up()
    return 128 + received


def _work(work: Callable[[], int], watched: int) -> None:
    """Run `work` in its own process group, and exit."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent handles them
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_SIGNALS, signal.SIGCHLD))
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
    os.read(sys.stdin.fileno(), 1)  # unbuffered: the interpreter takes the buffer's lock at exit
    os.kill(os.getpid(), signal.SIGTERM)


def _await_end(group: int) -> None:
    """Of all that was killed: until then it may write, and hold locks.

    Bounded, as processes that nobody waits for stay in their group.
    """
    for _ in range(_END_POLLS):
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(_END_POLL_S)


def _code(worker: int, status: int, clear_up: Callable[[], None]) -> int:
    if status >= 0:
        return status
    _await_end(worker)
    clear_up()
    with contextlib.suppress(OSError):  # SIGKILL has no handler to reset
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
    return 128 - status
