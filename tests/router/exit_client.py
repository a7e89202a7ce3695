"""A real server with early exits, as its clients see it."""

import asyncio
import json
from typing import Any

from aiohttp import ClientSession, ClientTimeout

from tests.running import Server

_PATIENCE_S = 60.0
LEAVING = {"exit_mode": "per_row", "exit_layers": "1,2", "no_exit_fallback": True}
PROMPTS = [f"The {letter} dog thinks about the" for letter in "abcdefghijkl"]


class Client:
    """A client of a running server."""

    def __init__(self, session: ClientSession, server: Server):
        self._session = session
        self.server = server

    async def answer(self, prompt: str, **parameters: Any) -> dict[str, Any]:
        """The whole answer with its details. Raises `AssertionError` when there is none."""
        status, answer = await self.post(prompt, **parameters)
        assert status == 200, answer
        return answer

    async def post(self, prompt: str, **parameters: Any) -> tuple[int, Any]:
        async with self._session.post(f"{self.server.url}/generate", json=_body(prompt, parameters)) as got:
            return got.status, await got.json()

    async def header(self, name: str, prompt: str, **parameters: Any) -> str | None:
        async with self._session.post(f"{self.server.url}/generate", json=_body(prompt, parameters)) as got:
            return got.headers.get(name)

    async def stream(self, prompt: str, first: asyncio.Event | None = None, **parameters: Any) -> str:
        """The text of a stream; `first` is set when its first token has come."""
        body = _body(prompt, parameters)
        async with self._session.post(f"{self.server.url}/generate_stream", json=body) as got:
            async for line in got.content:
                if not line.startswith(b"data: "):
                    continue
                event = json.loads(line.removeprefix(b"data: "))
                assert "error" not in event, event
                if first is not None:
                    first.set()
                if event["generated_text"] is not None:
                    return str(event["generated_text"])
        raise AssertionError("the stream ended before its end")

    async def state(self) -> dict[str, Any]:
        async with self._session.get(f"{self.server.url}/ops/state") as got:
            return dict(await got.json())

    async def info(self) -> dict[str, Any]:
        async with self._session.get(f"{self.server.url}/info") as got:
            return dict(await got.json())

    async def metric(self, name: str) -> dict[str, float]:
        """A metric's values, by what stands between its braces."""
        async with self._session.get(f"{self.server.url}/metrics") as got:
            lines = (await got.text()).splitlines()
        rows = [
            line.removeprefix(name + "{").rpartition("} ") for line in lines if line.startswith(name + "{")
        ]
        return {labels: float(value) for labels, _, value in rows}

    async def is_empty(self) -> None:
        """Wait until no request is left and no block is held."""
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                state = await self.state()
                [shard] = state["shards"]
                free = shard["num_free_blocks"] == shard["num_blocks"]
                if free and state["running"] == state["waiting"] == 0:
                    return
                await asyncio.sleep(0.02)

    async def has_scored(self, num_answers: int) -> dict[str, Any]:
        """Wait until so many answers were read again; what came of it."""
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                agreement = (await self.state())["agreement"]
                if agreement["sequences"] >= num_answers:
                    return dict(agreement)
                await asyncio.sleep(0.02)


def session() -> ClientSession:
    return ClientSession(timeout=ClientTimeout(60))


def exit_layers(answer: dict[str, Any]) -> list[int]:
    return [token["exit_layer"] for token in answer["details"]["tokens"]]


def _body(prompt: str, parameters: dict[str, Any]) -> dict[str, Any]:
    usual = {"max_new_tokens": 24, "details": True, "ignore_eos": True}
    return {"inputs": prompt, "parameters": usual | parameters}
