"""The command `helios top`."""

import argparse
import asyncio
import logging
import math
import os
import sys
from collections.abc import Sequence

import msgspec
from rich.console import Console

from telemetry.link import check_url
from telemetry.overview import Overview
from telemetry.terminal.client import WrongAddress, add_server_flags, client_of
from telemetry.terminal.top.source import Away, RedisSource, RouterSource, Source

ABOUT = """\
Show a deployment, live: shards, exits, thresholds, agreement, latency, queue, the loop and its decisions.
With --redis it works from anywhere and while no router runs; with --url it asks one router. It only reads.
Keys: s c d r tables, arrows and enter to look into a row, esc back, q quit."""
USAGE, UNREACHABLE = 2, 3  # exit statuses, as those of `helios ops`
_LEAST_INTERVAL_S = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 2 for a wrong address, 3 if nothing answers --once."""
    flags = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    logging.getLogger("telemetry").addHandler(logging.NullHandler())  # the screen tells of troubles itself
    try:
        source = _source(flags)
    except (WrongAddress, ValueError) as error:
        return _fail(str(error), USAGE)
    if flags.once:
        return asyncio.run(_once(source, flags.json))
    if flags.json:
        return _fail("--json goes with --once.", USAGE)
    if not sys.stdout.isatty():
        return _fail("There is no terminal to draw on; --once prints the state once.", USAGE)
    from telemetry.terminal.top.app import Top  # Textual takes a while to import

    Top(source, flags.interval).run()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="helios top", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--redis", metavar="URL", help="read from this Redis alone [HELIOS_REDIS_URL]")
    parser.add_argument("--deployment", default="helios", metavar="NAME", help="in that Redis [helios]")
    parser.add_argument(
        "--interval", type=_interval, default=1.0, metavar="S", help="seconds between two looks [1]"
    )
    parser.add_argument("--once", action="store_true", help="print the state once, and end")
    parser.add_argument("--json", action="store_true", help="as JSON, with --once")
    add_server_flags(parser)
    return parser


def _source(flags: argparse.Namespace) -> Source:
    redis = flags.redis or (None if flags.url else os.environ.get("HELIOS_REDIS_URL"))
    if redis is None:
        return RouterSource(client_of(flags))
    if flags.url:
        raise ValueError("Give --redis or --url, not both.")
    try:
        check_url(redis)
    except ValueError as error:
        raise ValueError(f"What --redis gives {error}") from None
    return RedisSource(redis, flags.deployment)


async def _once(source: Source, as_json: bool) -> int:
    try:
        overview = await source.read()
    except Away as away:
        return _fail(str(away), UNREACHABLE)
    finally:
        await source.close()
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(overview), indent=2).decode())
    else:
        _print(overview)
    return 0


def _print(overview: Overview) -> None:
    """The summary and all shards, as wide as they are."""
    from telemetry.terminal.top.page import lines

    console = Console(highlight=False, soft_wrap=True)
    for line in lines(overview, console.width if console.is_terminal else 160):
        console.print(line)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (_LEAST_INTERVAL_S <= seconds < math.inf):
        raise argparse.ArgumentTypeError(
            f"must be a number of seconds from {_LEAST_INTERVAL_S} on, not {text!r}"
        )
    return seconds


def _fail(sentence: str, status: int) -> int:
    print(f"helios top: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
