"""The one command: maps subcommands to folders' main functions, and imports only the one that it runs."""

import importlib
import importlib.metadata
import os
import signal
import sys
from collections.abc import Sequence

from shard.cpu import imitate

COMMANDS = {
    "serve": ("router.__main__", "serve a model over HTTP"),
    "pull": ("shard.fetch.pull", "fetch the embedded model"),
    "bench": ("loadgen.__main__", "measure a running server: serve, compare, peers, scenario, selftest"),
    "bench scale": ("router.simulation.bench", "simulate many shards and shifting requests in virtual time"),
    "bench cache": (
        "router.simulation.cache_bench",
        "simulate what prefix caches find of a trace",
    ),
    "bench router": ("router.simulation.router_bench", "measure the router's CPU time per streamed token"),
    "bench drafts": ("shard.bench.drafts", "measure the speculative mode against full depth, without HTTP"),
    "bench engine": ("shard.bench.engine", "measure the engine alone, without HTTP"),
    "tune": ("shard.tune.__main__", "make an early-exit model: heads trained by self-distillation"),
    "score": ("shard.score.command", "compare answers in a file with what the full model says"),
    "calibrate": ("shard.tune.calibrate", "find thresholds for exits that keep a promise about quality"),
    "top": ("telemetry.terminal.top.__main__", "watch shards, exits, queue and decisions in a terminal"),
    "ops": ("telemetry.terminal.ops.__main__", "inspect a running server, and give it commands"),
    "shard": ("shard.__main__", "run one shard for a router on another host"),
}

# Spins of threads that wait for each other after each product; read when torch is imported. libgomp's default
# of 300,000 takes milliseconds: a core shared with another process made steps ten times slower.
SPIN_COUNT = "5000"

HELP = """\
usage: helios COMMAND [flags]

Serves early-exit language models.

{commands}

helios COMMAND --help tells a command's flags.

  helios serve                                  the embedded model, on http://localhost:3000
  helios serve --model-id FOLDER --port 8080    a model of your own\
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code, 2 with one line for an unknown command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version", "version"):
        print(f"helios {_version()}")
        return 0
    name = _command(arguments)
    if name is None:
        print(f"helios has no command {arguments[0]!r}: there are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    try:
        imitate(os.environ)
    except ValueError as error:
        print(f"helios: {error}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(COMMANDS[name][0])
        return int(module.main(arguments[len(name.split()) :]) or 0)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # as in `helios ops state | head`; Python would complain again when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _command(arguments: Sequence[str]) -> str | None:
    """The command of two words, else of one, at the start of the arguments."""
    names = (" ".join(arguments[:2]), arguments[0])
    return next((name for name in names if name in COMMANDS), None)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return HELP.format(commands="\n".join(lines))


def _version() -> str:
    try:
        return importlib.metadata.version("helios-serve")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
