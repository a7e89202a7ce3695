"""Child processes of the router, shielded from signals that a service manager sends to all processes."""

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import router

_PACKAGE_ROOT = Path(router.__file__).parents[1]  # where children find our packages
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def start_child(command: Sequence[str], **more: Any) -> subprocess.Popen[bytes]:
    """Start it in a session of its own, deaf to SIGTERM and SIGINT from its first moment. Raises `OSError`.

    Ctrl-C, and a service manager's signals to every process, are the router's to answer: by a drain that
    needs its children, which end with the sockets that they hold. A child inherits the signals blocked here.
    None is lost, as they are delivered to this process afterwards. (What uvloop starts begins with none
    blocked.) `more` is `Popen`'s.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        return subprocess.Popen(command, cwd=_PACKAGE_ROOT, start_new_session=True, **more)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
