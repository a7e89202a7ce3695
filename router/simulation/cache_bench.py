"""`helios bench cache`: what the prefix cache costs the router, and what it finds of a trace's prompts.

The trace is served by simulated shards in virtual time: tables, blocks and queue are the real ones, only
layers are not run. Beside it stand what requests in their order find, and what one ideal cache would.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from router.catalog.served_model import Target
from router.fleet.dispatcher import Dispatcher
from router.scheduling.request import Finished, Request, Spec
from router.settings.config import Config
from router.simulation import virtual
from router.simulation.cache_costs import measure_costs
from router.simulation.cache_trace import TRACE_BLOCK_TOKENS, Prompt, num_found_ideally, read_prompts
from router.simulation.shards import VirtualLauncher
from router.simulation.world import VOCAB_SIZE, byte_tokenizer
from shard.messages import Sampling, ShardConfig

_FIRST_ID = 256  # below are special tokens of the simulated model
_BLOCK_TOKENS = 16
_COSTS = {"vocab_size": VOCAB_SIZE, "kv_bytes_per_token": 1, "max_total_tokens": 8192, "num_layers": 1}


class Asked(msgspec.Struct, frozen=True):
    """The size of the simulation."""

    trace: str | None = None  # file
    scale: int = 32  # a prompt has this part of the trace's tokens
    shards: int = 1
    blocks: int = 4000  # of 16 tokens, each shard
    concurrency: int = 32  # requests at a time, in the trace's order
    batch: int = 8  # sequences in a shard's step
    requests: int | None = None  # the first of the trace; None: all


class Served(msgspec.Struct, frozen=True):
    """What was found with one order of the queue."""

    found_tokens: int  # of prompts
    prefilled_tokens: int  # of prompts, those that were computed
    most_passed_over: int  # times that one request saw later ones begin first
    hottest_share: float  # of all requests, those on the shard with most
    virtual_s: float


class Result(msgspec.Struct, frozen=True):
    asked: Asked
    prompt_tokens: int
    in_order: Served
    by_cache: Served
    ideal_prefilled_tokens: int

    @property
    def over_ideal(self) -> float:
        """Tokens that were computed beyond those of an ideal cache, as a share of these."""
        return self.by_cache.prefilled_tokens / self.ideal_prefilled_tokens - 1


def measure(asked: Asked) -> Result:
    """Serve the trace twice. Raises `ValueError` or `OSError` for a trace that cannot be read."""
    assert asked.trace is not None
    prompts = read_prompts(Path(asked.trace), asked.scale, _FIRST_ID, VOCAB_SIZE)[: asked.requests]
    num_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    ideal = num_found_ideally(prompts, asked.shards * asked.blocks, _BLOCK_TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        costs = Path(folder) / "costs.json"
        costs.write_text(json.dumps(_COSTS))
        in_order, by_cache = (virtual.run(_serve(asked, prompts, costs, look)) for look in (1, 16))
    return Result(asked, num_tokens, in_order, by_cache, num_tokens - ideal)


async def _serve(asked: Asked, prompts: Sequence[Prompt], costs: Path, lookahead: int) -> Served:
    config = Config(device="sim", num_shards=asked.shards, queue_lookahead=lookahead)
    shard = ShardConfig(
        "sim",
        device="sim",
        block_size=_BLOCK_TOKENS,
        kv_cache_bytes=asked.blocks * _BLOCK_TOKENS,
        max_batch_size=asked.batch,
        cost_model=str(costs),
        prefix_cache=True,
    )
    tokenizer = byte_tokenizer()
    dispatcher = Dispatcher(config, Target("sim", shard, tokenizer), launch=VirtualLauncher)
    await dispatcher.start()
    left = iter(
        Spec(
            prompt_token_ids=prompt.token_ids,
            tokenizer=tokenizer,
            max_new_tokens=prompt.num_answer_tokens,
            sampling=Sampling(seed=seed),
            ignore_eos=True,
        )
        for seed, prompt in enumerate(prompts)
    )
    try:
        clients = [_send(dispatcher, left) for _ in range(asked.concurrency)]
        requests = [request for part in await asyncio.gather(*clients) for request in part]
        return _served(requests, asyncio.get_running_loop().time())
    finally:
        await dispatcher.stop(drain=False)


async def _send(dispatcher: Dispatcher, specs: Iterator[Spec]) -> list[Request]:
    """One client: sends a request when its last one is answered. Raises `GenerationFailed`."""
    requests = []
    for spec in specs:
        request = dispatcher.submit(spec)
        while not any(isinstance(event, Finished) for event in await request.take()):
            pass
        requests.append(request)
    return requests


def _served(requests: list[Request], virtual_s: float) -> Served:
    num_found = sum(request.num_cached_tokens for request in requests)
    by_shard = [request.moves[0].shard for request in requests]
    return Served(
        num_found,
        sum(request.num_prompt_tokens for request in requests) - num_found,
        max(request.num_passed_over for request in requests),
        max(map(by_shard.count, set(by_shard))) / len(by_shard),
        virtual_s,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; prints lines for people and one line of JSON."""
    parser = argparse.ArgumentParser(prog="helios bench cache", description=__doc__)
    parser.add_argument("--trace", metavar="FILE", help="as Mooncake's, JSON by lines [none: costs alone]")
    for name, about in (
        ("scale", f"prompts have this part of the trace's tokens, a divisor of {TRACE_BLOCK_TOKENS}"),
        ("shards", "simulated shards"),
        ("blocks", "blocks of 16 tokens on each"),
        ("concurrency", "requests at a time"),
        ("batch", "sequences in a step"),
        ("requests", "the first N of the trace"),
    ):
        default = getattr(Asked(), name)
        shown = "all" if default is None else default
        parser.add_argument(
            f"--{name}", type=_positive, default=default, metavar="N", help=f"{about} [{shown}]"
        )
    asked = Asked(**vars(parser.parse_args(argv)))
    if TRACE_BLOCK_TOKENS % asked.scale:
        parser.error(f"--scale must divide {TRACE_BLOCK_TOKENS}, not {asked.scale}")
    line: dict[str, object] = {"bench": "cache"}
    try:
        if asked.trace is not None:
            line["trace"] = _told(measure(asked))
    except (ValueError, OSError) as error:
        print(f"helios bench cache: {error}", file=sys.stderr)
        return 1
    costs = measure_costs()
    print(f"a step of 256 sequences: {costs.schedule_us:.0f} us of CPU time, ", end="")
    print(f"{costs.schedule_us_without:.0f} without a cache; {costs.start_us:.0f} with one that begins")
    print(f"index: {costs.index_bytes_per_block:.0f} bytes a block")
    print(json.dumps(line | {"costs": msgspec.to_builtins(costs)}))
    return 0


def _told(result: Result) -> dict[str, object]:
    """Print a line for each order of the queue; returns the figures for JSON."""
    for name, served in (("in their order", result.in_order), ("by the cache", result.by_cache)):
        share = served.found_tokens / result.prompt_tokens
        print(f"{name:>15}: {share:.1%} found, one passed over {served.most_passed_over} times at most")
    print(f"{result.over_ideal:+.1%} tokens computed beyond an ideal cache of the same size")
    return {**msgspec.to_builtins(result), "over_ideal": result.over_ideal}


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return number


if __name__ == "__main__":
    sys.exit(main())
