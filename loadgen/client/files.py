"""Room for many open connections, made before anything is timed."""

import contextlib
import fcntl
import os
import resource

PLACES = 16384


def make_room() -> None:
    """Allow as many open files as the system lets us, and let the kernel grow its table for them now.

    A process with threads waits for all cores (`synchronize_rcu`, some ten milliseconds) each time that table
    doubles: at the 256th, 512th and 1,024th stream, just when there is most to read.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # not allowed here: what there is must do
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError):
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, min(PLACES, allowed) - 1))
