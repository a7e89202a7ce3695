"""Where overviews come from: a Redis, or a router's `/ops/overview`."""

import asyncio
from typing import Protocol

import msgspec

from telemetry.overview import Overview
from telemetry.overview_reader import OverviewReader
from telemetry.store import Store
from telemetry.terminal.client import Client, Unreachable


class Away(Exception):
    """Nothing could be read now. The message is one sentence."""


class Source(Protocol):
    """Something that overviews are read from, one after the other."""

    async def read(self) -> Overview:
        """Raises `Away`."""

    async def close(self) -> None:
        """Close connections."""


class RedisSource:
    """A deployment in a Redis, also while no router runs. Writes nothing."""

    def __init__(self, url: str, deployment: str):
        """Raises `ValueError` for a malformed URL."""
        self._store = Store(url, deployment, "")
        self._reader = OverviewReader(self._store)

    async def read(self) -> Overview:
        overview = await self._reader.read()
        if overview is None:
            raise Away(f"Redis does not answer: {(self._store.trouble or '').rstrip('.')}.")
        return overview

    async def close(self) -> None:
        await self._store.stop()


class RouterSource:
    """What one router says of the whole deployment."""

    def __init__(self, client: Client):
        self._client = client

    async def read(self) -> Overview:
        try:
            answer = await asyncio.to_thread(self._client.get, "/ops/overview")
        except Unreachable as error:
            raise Away(str(error)) from None
        if not answer.is_success:
            raise Away(answer.error)
        try:
            return msgspec.json.decode(answer.raw, type=Overview)
        except msgspec.MsgspecError as error:
            raise Away(f"{self._client.url} is another version of Helios: {error}.") from None

    async def close(self) -> None:
        """Nothing is open between two calls."""
