"""The command line of `helios ops`."""

import argparse
import math
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence

from telemetry.terminal.client import add_server_flags

ABOUT = """\
Look at a running server, and give it commands. Each command is recorded in the audit log with who gave it.

exit status: 0 done (or begun, without --wait)  1 refused, failed or rolled back  2 usage
             3 no server answers  4 key refused  5 still under way at --timeout"""
LONGEST_WAIT_S = 900.0

_Add = Callable[[str, str], ArgumentParser]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Exits with status 2 and a sentence for a wrong one."""
    parser = ArgumentParser(
        prog="helios ops", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_common(parser, False, None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, about: str) -> ArgumentParser:
        command = commands.add_parser(name, help=about, description=f"{about.capitalize()}.")
        _add_common(command, SUPPRESS, SUPPRESS)
        return command

    _add_views(add)
    _add_changes(add)
    _add_others(add)
    return parser.parse_args(list(argv))


def _add_common(parser: ArgumentParser, as_json: bool | str, default: str | None) -> None:
    """Flags that may stand before or behind the command's name, which leaves those before it as they are."""
    about = "print what the server said, as JSON"
    parser.add_argument("--json", action="store_true", default=as_json, help=about)
    add_server_flags(parser, default)


def _add_views(add: _Add) -> None:
    add("state", "shards, queue, candidates and what the loop does")
    decisions = add("decisions", "the last decisions, or one with all that is known of it")
    decisions.add_argument("id", nargs="?", metavar="ID")
    decisions.add_argument("--limit", type=_positive, default=20, metavar="N", help="how many [20]")
    add("requests", "live requests, and the last that ended")
    add("request", "one request with its time line").add_argument("id", metavar="ID")
    watch = add("watch", "print decisions as they are taken and settled, until Ctrl-C")
    watch.add_argument(
        "--limit", type=_count, default=10, metavar="N", help="earlier ones to begin with [10]"
    )
    watch.add_argument("--interval", type=_seconds, default=1.0, metavar="S", help="between two looks [1]")


def _add_changes(add: _Add) -> None:
    swap = add("swap", "serve another candidate, or the same at another depth")
    swap.add_argument("candidate", metavar="CANDIDATE")
    swap.add_argument("--depth", type=_positive, metavar="LAYERS", help="default: the most that it has")
    depth = add("depth", "serve what is served with fewer or more layers")
    depth.add_argument("depth", type=_positive, metavar="LAYERS")
    pin = add("pin", "serve a candidate and keep the loop from changing it")
    pin.add_argument("candidate", metavar="CANDIDATE")
    pin.add_argument("--depth", type=_positive, metavar="LAYERS", help="default: the most that it has")
    rollback = add("rollback", "serve what was served before the last change")
    unpin = add("unpin", "leave the choice to the loop again")
    for command in (swap, depth, rollback):
        command.add_argument("--shard", type=_count, metavar="N", help="default: all")
    for command in (swap, depth):
        command.add_argument(
            "--inflight", choices=("finish", "migrate"), help="running requests end on the old model, or move"
        )
    threshold = add("threshold", "set the exit threshold of requests that give none")
    threshold.add_argument(
        "value", type=_threshold, metavar="VALUE", help="0 to 1, or `own`: each exit's own"
    )
    for command in (swap, depth, pin, rollback, unpin, threshold):
        command.add_argument("--wait", action="store_true", help="return once the decision is settled")
        _add_timeout(command)


def _add_others(add: _Add) -> None:
    drain = add("drain", "give shards nothing new; what runs goes on")
    drain.add_argument("--wait", action="store_true", help="return once nothing runs on them")
    _add_timeout(drain)
    resume = add("resume", "undo drain")
    clear = add("cache-clear", "let nothing be found that was computed of prompts and answers so far")
    for command in (drain, resume, clear):
        command.add_argument("--shard", type=_count, metavar="N", help="default: all")
    add("abort", "end a request").add_argument("id", type=_count, metavar="ID")


def _add_timeout(command: ArgumentParser) -> None:
    command.add_argument(
        "--timeout",
        type=_seconds,
        default=LONGEST_WAIT_S,
        metavar="S",
        help=f"of --wait [{LONGEST_WAIT_S:.0f}]",
    )


def _count(text: str) -> int:
    return _whole_number(text, 0)


def _positive(text: str) -> int:
    return _whole_number(text, 1)


def _whole_number(text: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise ArgumentTypeError(f"must be a whole number from {least} on, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    number = _number(text)
    if not (0 < number < math.inf):
        raise ArgumentTypeError(f"must be a number of seconds, not {text!r}")
    return number


def _threshold(text: str) -> float | None:
    if text == "own":
        return None
    number = _number(text)
    if not 0 <= number <= 1:
        raise ArgumentTypeError(f"must be a number from 0 to 1, or `own`, not {text!r}")
    return number


def _number(text: str) -> float:
    """Not a number for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
