"""Two prompts that begin alike: how much sooner the second one's answer begins."""

import secrets
from statistics import median

import msgspec

from loadgen.results.summary import Measured
from loadgen.scenarios.context import Played, Promise, Scenario, ScenarioContext, whole_answers

PAIRS, SHARED_TOKENS, OWN_TOKENS, ANSWER_TOKENS = 5, 1000, 16, "4"
LEAST_RATIO = 5.0


class Pair(msgspec.Struct, frozen=True):
    """Two requests with one beginning, one after the other."""

    first_ms: float  # to the first token
    second_ms: float
    cached_tokens: int | None  # of the second prompt


async def play(context: ScenarioContext) -> Played:
    found: list[Measured] = []
    shared = context.count(SHARED_TOKENS, 32)
    plans = [
        context.plan(
            requests=2,
            concurrency=1,
            prefix_tokens=shared,
            input_tokens=str(shared + OWN_TOKENS),
            output_tokens=ANSWER_TOKENS,
            seed=secrets.randbelow(2**31),  # what an earlier run has sent is cached
        )
        for _ in range(PAIRS)
    ]
    async with context.reach(plans[0]) as target:
        for number, plan in enumerate(plans, 1):
            found.append(await context.run(target, plan, f"pair {number}"))
    pairs = [pair for measured in found if (pair := _pair_of(measured)) is not None]
    return Played(
        promises=[*whole_answers(*(measured.summary for measured in found)), _promise(pairs, shared)],
        runs=found,
        figures={
            "shared_tokens": shared,
            "first_ms": [pair.first_ms for pair in pairs],
            "second_ms": [pair.second_ms for pair in pairs],
            "cached_tokens": [pair.cached_tokens for pair in pairs],
        },
    )


def _pair_of(measured: Measured) -> Pair | None:
    """None if one of the two got no answer."""
    records = sorted(measured.run.records, key=lambda record: record.begun)
    times = [record.ttft_ms for record in records if record.ttft_ms is not None]
    return Pair(times[0], times[1], records[1].cached_tokens) if len(times) == 2 else None


def _promise(pairs: list[Pair], shared: int) -> Promise:
    says = f"Behind {shared:,} tokens that are known, the first token comes {LEAST_RATIO:g} times sooner."
    if not pairs:
        return Promise(says, False, "no pair was answered")
    first, second = median(p.first_ms for p in pairs), median(p.second_ms for p in pairs)
    ratio = median(pair.first_ms / pair.second_ms for pair in pairs)
    found = f"{first:.0f} ms, then {second:.0f} ms: {ratio:.1f} times (medians of {len(pairs)} pairs)"
    return Promise(says, ratio >= LEAST_RATIO, found)


SCENARIO = Scenario(
    "shared-prefix",
    "Pairs of prompts with the same first 1,000 tokens, one after the other: the prefix cache shortens the "
    "second one's time to the first token at least fivefold.",
    play,
)
