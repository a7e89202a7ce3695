"""Measures, by servers started for it, the size of layers and the length of requests."""

from collections.abc import Sequence
from typing import Any

from loadgen.client.server_info import Unusable, count_tokens
from loadgen.load.plan import Plan
from loadgen.load.target import Target, reach
from loadgen.paper.footprint import Footprint, Load, footprint_of
from loadgen.paper.subject import Subject
from loadgen.paper.systems import PROBE_KV_BYTES, probes
from loadgen.servers.helios import serving

TEMPLATE_TOKENS = 48  # most tokens that a chat template adds to a prompt
LONGEST = 32  # longest prompts by characters, whose tokens are counted


async def footprint(subject: Subject, plan: Plan, flags: Sequence[str]) -> tuple[Footprint, int]:
    """The model's footprint, and the tokens of the plan's longest prompt. Raises `Unusable`."""
    whole, capped = ((*probed, *flags) for probed in probes(subject))
    async with serving(whole) as url, reach(url, plan) as target:
        heavy, prompt_tokens = await _load(target), await _longest_prompt(target, plan)
    async with serving(capped) as url, reach(url, plan) as target:
        light = await _load(target)
    return footprint_of(heavy, light), prompt_tokens


async def _load(target: Target) -> Load:
    info: Any = (await target.client.fetch("GET", "/info")).json()
    try:
        token_bytes = PROBE_KV_BYTES / info["max_batch_total_tokens"]
        return Load(int(info["depth"]), int(info["weight_bytes"]), token_bytes)
    except (TypeError, KeyError, ZeroDivisionError):
        raise Unusable(f"{target.client.address.url}/info does not tell what the model weighs") from None


async def _longest_prompt(target: Target, plan: Plan) -> int:
    longest = sorted((prompt.turns[0] for prompt in plan.prompts), key=len)[-LONGEST:]
    counts = [await count_tokens(target.client, target.server_info, text) for text in longest]
    if not counts or None in counts:
        raise Unusable("the server cannot count the tokens of prompts")
    return max(count for count in counts if count is not None) + TEMPLATE_TOKENS
