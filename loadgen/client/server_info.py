"""Finds out about a server before the load: its kind, its model, its tokenize route."""

from typing import Any

import msgspec

from loadgen.client.client import Client
from loadgen.client.dialects import Ask, Dialect, Message
from loadgen.client.records import Outcome, Record


class Unusable(Exception):
    """The server cannot be measured; the message, one sentence, says why."""


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Properties of a server."""

    kind: str  # helios | tgi | vllm | openai
    dialect: Dialect
    model: str
    version: str = ""
    num_layers: int | None = None
    tokenizes: str = ""  # tgi | vllm: format of its /tokenize; empty: no such route
    templates: bool = False  # has /chat_tokenize
    takes_ignore_eos: bool = False


async def meet(client: Client, dialect: Dialect | None, model: str | None) -> ServerInfo:
    """Find out a server's properties, and generate one token. Raises `Unusable`."""
    health = await client.fetch("GET", "/health")
    if health.status == 0:
        raise Unusable(f"{health.problem}; is the server running?")
    info = _dict((await client.fetch("GET", "/info")).json())
    models = _dict((await client.fetch("GET", "/v1/models")).json()).get("data") or [{}]
    kind = await _kind(client, info)
    chosen = dialect or (Dialect.TGI if kind in ("helios", "tgi") else Dialect.COMPLETIONS)
    name = model or str(models[0].get("id") or info.get("model_id") or "default")
    layers = info.get("num_layers")
    server_info = ServerInfo(
        kind=kind,
        dialect=chosen,
        model=name,
        version=str(
            info.get("version") or _dict((await client.fetch("GET", "/version")).json()).get("version", "")
        ),
        num_layers=layers if isinstance(layers, int) else None,
        tokenizes=await _tokenizer_shape(client, name),
        templates=(await client.fetch("POST", "/chat_tokenize", _CHAT)).is_ok,
    )
    return msgspec.structs.replace(server_info, takes_ignore_eos=await _try_one_token(client, server_info))


_CHAT = {"model": "", "messages": [{"role": "user", "content": "Hello"}]}


async def _kind(client: Client, info: dict[str, Any]) -> str:
    if (await client.fetch("GET", "/ops/state")).status in (200, 401, 403):
        return "helios"
    if "model_id" in info:
        return "tgi"
    return "vllm" if (await client.fetch("GET", "/version")).is_ok else "openai"


async def _tokenizer_shape(client: Client, model: str) -> str:
    for shape in ("tgi", "vllm"):
        if await _count(client, shape, model, "the") is not None:
            return shape
    return ""


async def _count(client: Client, shape: str, model: str, text: str) -> int | None:
    body = {"inputs": text} if shape == "tgi" else {"model": model, "prompt": text}
    answer = await client.fetch("POST", "/tokenize", body)
    value = answer.json() if answer.is_ok else None
    if isinstance(value, list):
        return len(value)
    count = _dict(value).get("count")
    return count if isinstance(count, int) else None


async def count_tokens(client: Client, server_info: ServerInfo, text: str) -> int | None:
    """Number of tokens of a plain text by the server, special ones included; None if it cannot tell."""
    return (
        await _count(client, server_info.tokenizes, server_info.model, text)
        if server_info.tokenizes
        else None
    )


async def _try_one_token(client: Client, server_info: ServerInfo) -> bool:
    """Generate a little with and, if refused, without `ignore_eos`; True if accepted. Raises `Unusable`."""
    for ignore_eos in (True, False):
        record = Record(number=0, max_tokens=2)
        hello = (Message("user", "Hello"),)
        ask = Ask(messages=hello, text="Hello", max_tokens=2, ignore_eos=ignore_eos)
        await client.stream(server_info.dialect, server_info.model, ask, record)
        if record.outcome is Outcome.OK:
            return ignore_eos
        if record.status not in (400, 422):
            break
    raise Unusable(
        f"{client.address.url}{server_info.dialect.path} does not answer a first request: "
        f"{record.outcome.value.replace('_', ' ')}, {record.detail or 'no more is known'}"
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
