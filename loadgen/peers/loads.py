"""The loads of a comparison, as plans of the load generator. Pure."""

from collections.abc import Iterator

import msgspec

from loadgen.load.options import LoadOptions
from loadgen.load.plan import Plan, plan_of
from loadgen.peers.options import PeerOptions

TTFT_REQUESTS = 4  # of each round, one at a time
SEED_STEP = 1000  # between loads, which must not repeat prompts: both servers would have them cached


class Load(msgspec.Struct, frozen=True):
    """A plan, its name in the table, and the measures shown there."""

    name: str
    plan: Plan
    measures: tuple[str, ...]


def loads_of(options: PeerOptions) -> Iterator[Load]:
    """The time to first token of long prompts, then each number of streams. Raises `BadQuantity`."""
    common = LoadOptions(dialect="completions", eos="ignore", temperature=0.0, warmup="0%")
    if options.ttft_tokens:
        alone = msgspec.structs.replace(
            common,
            concurrency=1,
            requests=TTFT_REQUESTS,
            input_tokens=str(options.ttft_tokens),
            output_tokens="1",
            seed=options.seed,
        )
        yield Load(f"{options.ttft_tokens}-token prompt alone", plan_of(alone), ("TTFT mean",))
    for position, streams in enumerate(options.stream_counts, start=1):
        load = msgspec.structs.replace(
            common,
            concurrency=streams,
            duration=f"{options.seconds}s",
            input_tokens=str(options.input_tokens),
            output_tokens=str(options.output_tokens),
            seed=options.seed + position * SEED_STEP,
        )
        name = f"{streams} stream{'s' if streams > 1 else ''}"
        yield Load(name, plan_of(load), ("output tokens/s", "TTFT mean", "ITL p50"))
