"""A server ready for a load: its client, its properties, the request parameters."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from loadgen.cli.units import BadQuantity, seconds
from loadgen.client.client import Address, Client, Patience
from loadgen.client.dialects import Dialect
from loadgen.client.ops import Operator
from loadgen.client.server_info import ServerInfo, count_tokens, meet
from loadgen.client.template import learn_template
from loadgen.load.options import LoadOptions
from loadgen.load.plan import Plan
from loadgen.load.run import RequestOptions
from loadgen.traffic.filler import Filler, learn_filler


class Target(msgspec.Struct, frozen=True):
    """All that a run on one server needs besides the load."""

    client: Client
    server_info: ServerInfo
    operator: Operator
    request_options: RequestOptions
    filler: Filler
    notes: list[str]


@asynccontextmanager
async def reach(url: str, plan: Plan) -> AsyncIterator[Target]:
    """Connect to a server and find out its properties. Raises `Unusable`, `BadUrl`, `BadQuantity`."""
    options = plan.options
    headers = {"authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    async with Client(Address.parse(url), headers, _patience(options)) as client:
        server_info = await meet(client, Dialect(options.dialect) if options.dialect else None, options.model)
        notes: list[str] = []
        filler = await _filler(client, server_info, notes) if plan.needs_filler else Filler()
        request_options = await _request_options(client, server_info, plan, notes)
        yield Target(client, server_info, Operator(client, options.admin_key), request_options, filler, notes)


def _patience(options: LoadOptions) -> Patience:
    return Patience(
        connect_s=seconds(options.connect_timeout),
        first_token_s=seconds(options.first_token_timeout),
        stall_s=seconds(options.stall_timeout),
        total_s=seconds(options.total_timeout),
    )


async def _filler(client: Client, server_info: ServerInfo, notes: list[str]) -> Filler:
    async def count(text: str) -> int | None:
        return await count_tokens(client, server_info, text)

    filler = await learn_filler(count)
    filler.text(100, random.Random(0))  # builds its pool of text before the load
    if not filler.is_exact:
        notes.append(
            "Prompt lengths are estimates of one token a word: the server cannot count tokens for us."
        )
    return filler


async def _request_options(
    client: Client, server_info: ServerInfo, plan: Plan, notes: list[str]
) -> RequestOptions:
    options = plan.options
    template = (
        await learn_template(client)
        if options.chat_template and server_info.dialect is not Dialect.CHAT
        else None
    )
    if options.chat_template and template is None and server_info.dialect is not Dialect.CHAT:
        notes.append("The server has no chat template for us: prompts were sent as they are.")
    if plan.ignores_eos and not server_info.takes_ignore_eos:
        notes.append("The server refuses ignore_eos: answers may be shorter than asked for.")
    return RequestOptions(
        dialect=server_info.dialect,
        model=server_info.model,
        temperature=options.temperature,
        ignore_eos=plan.ignores_eos and server_info.takes_ignore_eos,
        exit_threshold=options.exit_threshold,
        exact=options.exact,
        template=template,
        extra=extra_of(options.extra_body),
    )


def extra_of(text: str | None) -> dict[str, Any]:
    """A JSON object from the command line. Raises `BadQuantity`."""
    try:
        value = msgspec.json.decode(text) if text else {}
    except msgspec.DecodeError as error:
        raise BadQuantity(f"--extra-body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadQuantity("--extra-body is not a JSON object")
    return value
