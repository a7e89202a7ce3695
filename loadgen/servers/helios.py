"""`helios serve` as a child process."""

import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from loadgen.servers.process import ServerCommand, running


def helios_server(flags: Sequence[str]) -> ServerCommand:
    """The command of this installation with more flags."""

    def command(port: int) -> Sequence[str]:
        address = ("--hostname", "127.0.0.1", "--port", str(port))
        return (sys.executable, "-m", "helios", "serve", *address, *flags)

    return ServerCommand("Helios", command, "/readyz")


@contextlib.asynccontextmanager
async def serving(flags: Sequence[str]) -> AsyncIterator[str]:
    """Start a server on a free port; yields its URL when ready. Raises `Unusable` with the end of its log.

    The log is kept if the server does not start.
    """
    handle, name = tempfile.mkstemp(prefix="helios-serve-", suffix=".log")
    os.close(handle)
    async with running(helios_server(flags), Path(name)) as server:
        os.unlink(name)
        yield server.url
