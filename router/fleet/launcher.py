"""Starts shards: child processes of the router, or shards that listen on other hosts.

Both give a connected `ShardClient` with its model loaded. A child that does not answer is killed. A child
ends when the router's end of its socket closes, so with the router.
"""

import asyncio
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from router.child import start_child
from router.fleet.client import Patience, ShardClient, ShardDied, ShardVanished
from router.settings.config import Config
from shard.messages import PROTOCOL_VERSION, Hello, Ready, ShardConfig

log = logging.getLogger(__name__)

_MAX_FAILED_STARTS = 3  # in a row, before a restart counts as hopeless
_ADVICE = {
    signal.SIGKILL: "most likely the machine has run out of memory; lower --kv-cache-bytes or --num-shards",
    signal.SIGILL: "this CPU lacks an instruction; try --dtype float32, or another --cache-dir",
    signal.SIGBUS: "a file that it reads was cut off, or the machine has run out of memory",
}
_END_TIMEOUT_S = 0.5
_POLL_S = 0.01
_KILL_TIMEOUT_S = 10.0  # a device driver may delay the end of a process
_CONNECT_TIMEOUT_S = 10.0
SILENT_S = 10.0


class Launcher(Protocol):
    """Starts one shard repeatedly. Call `end` after every `start` before the next."""

    async def start(self, config: ShardConfig, wake: Callable[[], None]) -> tuple[ShardClient, Ready]:
        """Start a shard with a model; returns when it is ready for steps. Raises `ShardDied`."""
        ...

    async def end(self) -> None:
        """End the shard. Safe at any time, also when `start` failed or was cancelled."""
        ...


def launcher_of(config: Config, shard: int) -> Launcher:
    """The launcher of shard number `shard`. Raises `OSError` if the secret's file cannot be read."""
    patience = Patience(config.heartbeat_timeout_ms, config.step_timeout_ms)
    if not config.shard_addresses:
        return ChildLauncher(shard, patience, config.log_level)
    secret = _secret(config.shard_secret_file) if config.shard_secret_file else ""
    return RemoteLauncher(config.shard_addresses[shard], shard, secret, patience)


def _secret(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise OSError(f"shard_secret_file {file} cannot be read: {reason}") from None


class ChildLauncher:
    """Starts `python -m shard` on this host."""

    def __init__(self, shard: int, patience: Patience, log_level: str = "info"):
        self._shard = shard
        self._patience = patience
        self._log_level = log_level
        self._num_failed_starts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._client: ShardClient | None = None

    async def start(self, config: ShardConfig, wake: Callable[[], None]) -> tuple[ShardClient, Ready]:
        try:
            client = await self._spawn(wake)
            ready = await client.open(Hello(PROTOCOL_VERSION, "", self._shard, config))
        except ShardDied as death:
            self._num_failed_starts += 1
            permanent = death.permanent or self._num_failed_starts >= _MAX_FAILED_STARTS
            reason = await self._fate(config) if isinstance(death, ShardVanished) else death.reason
            raise ShardDied(reason, permanent) from death
        self._num_failed_starts = 0
        return client, ready

    async def end(self) -> None:
        if self._client is not None:
            await self._client.close()
        if self.process is not None:
            await _reap(self.process)
        self._client = self.process = None

    async def _fate(self, config: ShardConfig) -> str:
        """The fate of a process that ended without a reason, in words."""
        process = f"The process that was to load {config.model} on {config.device}"
        if self.process is None or not await _has_ended(self.process, _END_TIMEOUT_S):
            return f"{process} closed its connection."
        status = self.process.returncode
        if status >= 0:
            return f"{process} ended with exit status {status}: what it wrote before says why."
        number = signal.Signals(-status)
        advice = _ADVICE.get(number, "--log-level debug shows where")
        return f"{process} was ended by {number.name}: {advice}."

    async def _spawn(self, wake: Callable[[], None]) -> ShardClient:
        try:
            ours, self.process = _start_connected(self._log_level)
        except OSError as error:
            raise ShardDied(f"No process can be started for it: {error}.") from error
        log.debug("Shard %d is process %d.", self._shard, self.process.pid)
        self._client = await _adopt(ours, self._patience, wake)
        return self._client


class RemoteLauncher:
    """Connects to a shard that listens on another host, retrying until it answers."""

    def __init__(self, address: str, shard: int, secret: str, patience: Patience):
        self._address = address
        self._shard = shard
        self._secret = secret
        self._patience = patience
        self._client: ShardClient | None = None

    async def start(self, config: ShardConfig, wake: Callable[[], None]) -> tuple[ShardClient, Ready]:
        host, _, port = self._address.removeprefix("tcp://").rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, self._client = await loop.create_connection(
                    lambda: ShardClient(self._patience, wake), host.strip("[]"), int(port)
                )
        except OSError as error:  # TimeoutError included
            raise ShardDied(f"No shard answers at {self._address}: {error or 'timed out'}.") from error
        client, hello = self._client, Hello(PROTOCOL_VERSION, self._secret, self._shard, config)
        doubting = loop.call_later(SILENT_S, self._doubt, client)
        try:
            return client, await client.open(hello)
        except ShardDied as death:
            raise ShardDied(f"At {self._address}: {death.reason}", death.permanent) from death
        finally:
            doubting.cancel()

    async def end(self) -> None:
        if self._client is not None:
            await self._client.close()
        self._client = None

    def _doubt(self, client: ShardClient) -> None:
        """Warn if nothing was heard: a loading shard sends heartbeats, most other servers wait for input."""
        if client.last_heard is None:
            log.warning("What listens at %s has said nothing yet: is it a shard?", self._address)


def _start_connected(log_level: str) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start a shard process; returns our end of its socket, and the process."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            command = [sys.executable, "-m", "shard", "--fd", str(theirs.fileno())]
            command += ["--log-level", log_level]
            return ours, start_child(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
    except OSError:
        ours.close()
        raise


async def _adopt(sock: socket.socket, patience: Patience, wake: Callable[[], None]) -> ShardClient:
    loop = asyncio.get_running_loop()
    try:
        _, client = await loop.create_unix_connection(lambda: ShardClient(patience, wake), sock=sock)
    except BaseException:
        sock.close()
        raise
    return client


async def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for a child, which ends when its connection closes; kill it if it hangs."""
    if await _has_ended(process, _END_TIMEOUT_S):
        if process.returncode < 0:
            log.warning("Process %d was ended by %s.", process.pid, signal.Signals(-process.returncode).name)
        return
    process.kill()
    if not await _has_ended(process, _KILL_TIMEOUT_S):
        log.error("Process %d was killed, but has not ended: it is left behind.", process.pid)


async def _has_ended(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Wait for a process to end; False on timeout."""
    try:
        async with asyncio.timeout(timeout_s):
            while process.poll() is None:  # noqa: ASYNC110 (a process that is not the loop's has no event)
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        return False
    return True
