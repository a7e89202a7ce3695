"""Runs the synthetic server in a separate process."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator

import msgspec

from loadgen.client.server_info import Unusable
from loadgen.selftest.server import Behaviour

START_S = 60.0


@contextlib.contextmanager
def synthetic_server(behaviour: Behaviour) -> Iterator[str]:
    """Start the server; yields its URL. Raises `Unusable` if it does not start."""
    command = [sys.executable, "-m", "loadgen.selftest", msgspec.json.encode(behaviour).decode()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        watchdog = threading.Timer(START_S, process.kill)
        watchdog.daemon = True
        watchdog.start()
        port = process.stdout.readline()
        watchdog.cancel()
        if not port:
            raise Unusable("the synthetic server has ended, or has not started in time")
        yield f"http://127.0.0.1:{int(port)}"
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)
        process.stdout.close()
