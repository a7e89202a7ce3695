"""The synthetic server in a process of its own, for as long as it is needed."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import msgspec

from loadgen.selftest.server import Behaviour


@contextlib.contextmanager
def synthetic_server(behaviour: Behaviour) -> Iterator[str]:
    """Start one; gives its URL."""
    command = [sys.executable, "-m", "loadgen.selftest", msgspec.json.encode(behaviour).decode()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
