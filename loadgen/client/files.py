"""Raises the limits for many open connections before anything is timed."""

import contextlib
import fcntl
import os
import resource

PLACES = 16384


def make_room() -> None:
    """Raise the limit of open files to the maximum, and make the kernel grow its table of them now.

    A process with threads waits for all cores (`synchronize_rcu`, some ten milliseconds) whenever the table
    doubles: at the 256th, 512th and 1,024th stream, just when there is most to read.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # not permitted: keep the current limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError):
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, min(PLACES, allowed) - 1))
