"""`helios bench router`: the CPU time that the router spends on a streamed token, all included.

The router is a process of its own, its shards are simulated processes, the clients are this one: what is
divided by the tokens is the CPU time of the router alone, with everything that it does beside them.
"""

import argparse
import asyncio
import contextlib
import json
import math
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import msgspec
import uvloop

from router.settings import machine
from router.simulation.step_cost import step_costs
from router.simulation.streams import BODIES, Crowd, call
from shard.messages import EMBEDDED_MODEL
from shard.sim.sim_runner import CostModel

_LISTENING = re.compile(rb"Serving .* on http://127.0.0.1:(\d+)")
_READY_S, _STOP_S, _RAMP_S = 120.0, 30.0, 120.0
_SETTLE_S = 1.0
_MAX_BATCH = 256  # sequences of a shard
_NO_LIMITS = ["--max-concurrent-requests", "100000", "--max-queued-tokens", "100000000"]
_TOLERANCE = 0.02  # of the tokens counted by the router and by the clients


class Unusable(Exception):
    """Nothing was measured. The message says why."""


class Asked(msgspec.Struct, frozen=True):
    """What is measured."""

    streams: list[int]
    dialects: list[str]
    rate: float  # tokens per second of all streams together
    seconds: float
    flags: list[str] = []  # more of `helios serve`


class Cost(msgspec.Struct, frozen=True):
    """CPU time of the router at a number of streams."""

    dialect: str
    streams: int
    us_per_token: float
    tokens_per_s: float
    cpu_share: float  # of one core


class Readings(msgspec.Struct, frozen=True):
    """What the router says of itself."""

    cpu_s: float
    num_tokens: float
    num_running: float


async def measure(asked: Asked, dialect: str, num_streams: int) -> Cost:
    """Start a router with simulated shards, let all streams run, and measure. Raises `Unusable`."""
    num_shards = math.ceil(num_streams / _MAX_BATCH)
    step_ms = 1000 * num_streams / asked.rate
    num_tokens = round((asked.seconds + _RAMP_S) * asked.rate / num_streams)
    async with (
        _serving(asked, num_shards, _costs(step_ms, num_tokens)) as port,
        aiohttp.ClientSession() as http,
    ):
        url = f"http://127.0.0.1:{port}/metrics"
        crowd = Crowd()
        try:
            await crowd.open("127.0.0.1", port, call(dialect, num_tokens), num_streams)
            await _until_all_run(http, url, crowd, num_streams)
            await asyncio.sleep(_SETTLE_S)
            before, num_before = await _read(http, url), crowd.num_events
            await asyncio.sleep(asked.seconds)
            after, num_after = await _read(http, url), crowd.num_events
        finally:
            crowd.close()
        if crowd.problem:
            raise Unusable(crowd.problem)
    num_made = after.num_tokens - before.num_tokens
    num_read = num_after - num_before
    if dialect != "whole" and abs(num_read - num_made) > max(_TOLERANCE * num_made, 2 * num_streams):
        raise Unusable(f"the shards made {num_made:.0f} tokens, and the clients read {num_read} events")
    cpu_s = after.cpu_s - before.cpu_s
    return Cost(dialect, num_streams, 1e6 * cpu_s / num_made, num_made / asked.seconds, cpu_s / asked.seconds)


def _costs(step_ms: float, num_tokens: int) -> CostModel:
    """Shards whose steps take as long whatever they hold, and whose memory never ends."""
    return CostModel(
        step_ms=step_ms,
        token_ms=0.0,
        sequence_ms=0.0,
        context_token_ms=0.0,
        max_total_tokens=2 * num_tokens + 1000,
        kv_bytes_per_token=1,
    )


@contextlib.asynccontextmanager
async def _serving(asked: Asked, num_shards: int, costs: CostModel) -> AsyncIterator[int]:
    """Run `helios serve` on a free port, and yield that. Raises `Unusable` with its last words."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "costs.json"
        path.write_bytes(msgspec.json.encode(costs))
        command = [sys.executable, "-m", "helios", "serve", "--hostname", "127.0.0.1", "--port", "0"]
        command += ["--device", "sim", "--model-id", EMBEDDED_MODEL, "--cost-model", str(path)]
        command += ["--num-shards", str(num_shards), "--max-batch-size", str(_MAX_BATCH)]
        command += [*_NO_LIMITS, "--heartbeat-timeout-ms", "60000", "--log-level", "warning", *asked.flags]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_READY_S):
                async for line in process.stdout:
                    if (found := _LISTENING.search(line)) is not None:
                        break
                else:
                    raise Unusable(f"helios serve has ended: {' '.join(command[3:])}")
            yield int(found[1])
        finally:
            if process.returncode is None:
                process.terminate()
            async with asyncio.timeout(_STOP_S):
                await process.wait()


async def _until_all_run(http: aiohttp.ClientSession, url: str, crowd: Crowd, num_streams: int) -> None:
    try:
        async with asyncio.timeout(_RAMP_S / 2):
            while (await _read(http, url)).num_running < num_streams:
                if crowd.problem:
                    raise Unusable(crowd.problem)
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise Unusable(f"{num_streams} streams did not run at once") from None


async def _read(http: aiohttp.ClientSession, url: str) -> Readings:
    async with http.get(url) as response:
        text = await response.text()
    names = ("process_cpu_seconds_total", "helios_tokens_total", "tgi_batch_current_size")
    return Readings(*(_sum(text, name) for name in names))


def _sum(text: str, name: str) -> float:
    """Sum of a metric over its labels."""
    lines = (line for line in text.splitlines() if line.startswith((name + " ", name + "{")))
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def _run(asked: Asked) -> list[Cost]:
    costs = []
    for dialect in asked.dialects:
        for num_streams in asked.streams:
            cost = await measure(asked, dialect, num_streams)
            costs.append(cost)
            print(
                f"{cost.dialect:8} {cost.streams:8,} {cost.us_per_token:10.1f} {cost.tokens_per_s:10,.0f} "
                f"{cost.cpu_share:9.0%}",
                flush=True,
            )
    return costs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; prints a table of tokens, one of steps, and one line of JSON."""
    parser = argparse.ArgumentParser(prog="helios bench router", description=__doc__)
    parser.add_argument("--streams", type=_counts, default=[16, 64, 256, 1024], help="16,64,256,1024")
    parser.add_argument("--dialects", type=_names, default=list(BODIES), help=",".join(BODIES))
    parser.add_argument("--rate", type=float, default=6000.0, help="tokens per second of all streams")
    parser.add_argument("--seconds", type=float, default=6.0, help="that are measured at each number")
    parser.add_argument("flags", nargs="*", help="more flags of helios serve, behind --")
    asked = Asked(**vars(parser.parse_args(argv)))
    machine.raise_file_limit()
    print("router, us of CPU a token\ndialect   streams   us/token   tokens/s  of a core")
    try:
        costs = uvloop.run(_run(asked))
    except Unusable as error:
        print(f"helios bench router: {error}.", file=sys.stderr)
        return 1
    print("\nscheduler, us of CPU a step\nsequences   schedule     update      in all")
    steps = step_costs(asked.streams)
    for step in steps:
        print(f"{step.sequences:9,} {step.schedule_us:10.0f} {step.update_us:10.0f} {step.us:11.0f}")
    print(json.dumps(msgspec.to_builtins({"benchmark": "router", "tokens": costs, "steps": steps})))
    return 0


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in BODIES]
    if unknown:
        raise argparse.ArgumentTypeError(f"knows {', '.join(BODIES)}, not {unknown[0]}")
    return names


if __name__ == "__main__":
    sys.exit(main())
