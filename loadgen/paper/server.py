"""Runs `helios serve` as a child process, known by flags and over HTTP alone."""

import asyncio
import contextlib
import re
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence

from loadgen.client.client import Address, Client
from loadgen.client.server_info import Unusable

READY_S, STOP_S = 600.0, 30.0
ASK_EVERY_S = 0.1
_LISTENING = re.compile(r"Serving .* on (http://\S+)")
_LAST_WORDS = 5  # last lines of its log shown when it fails


@contextlib.asynccontextmanager
async def serving(flags: Sequence[str]) -> AsyncIterator[str]:
    """Start a server on a free port; yields its URL when ready. Raises `Unusable` with the end of its log."""
    command = [sys.executable, "-m", "helios", "serve", "--hostname", "127.0.0.1", "--port", "0", *flags]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    words: deque[str] = deque(maxlen=_LAST_WORDS)
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    reader = asyncio.create_task(_read(process, words, url))
    try:
        await _ready(url)
        yield url.result()
    except TimeoutError:
        raise Unusable(f"helios serve was not ready in {READY_S:.0f} s: {' '.join(flags)}") from None
    finally:
        await _stop(process)
        await asyncio.wait([reader], timeout=STOP_S)


async def _read(process: asyncio.subprocess.Process, words: deque[str], url: "asyncio.Future[str]") -> None:
    """Read its output to the end, since a full pipe would block it."""
    assert process.stdout is not None
    async for raw in process.stdout:
        line = raw.decode("utf-8", "replace").rstrip()
        words.append(line)
        found = _LISTENING.search(line)
        if found and not url.done():
            url.set_result(found.group(1))
    if not url.done():
        url.set_exception(Unusable(f"helios serve ended: {' '.join(words)}"))


async def _ready(url: "asyncio.Future[str]") -> None:
    async with asyncio.timeout(READY_S):
        async with Client(Address.parse(await url)) as client:
            while not (await client.fetch("GET", "/readyz")).is_ok:  # noqa: ASYNC110 (it has no event for us)
                await asyncio.sleep(ASK_EVERY_S)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        async with asyncio.timeout(STOP_S):
            await process.wait()
