"""`helios bench serve | compare | peers | scenario | helios | selftest`: the command line.

Exit codes: 0 done (and every promise kept), 1 a promise broken, 2 could not run.
"""

import asyncio
import os
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

import uvloop
from rich.console import Console

from loadgen.cli import flags
from loadgen.cli.units import BadQuantity
from loadgen.client.client import BadUrl
from loadgen.client.files import make_room
from loadgen.client.server_info import Unusable
from loadgen.load.options import CompareOptions, ScenarioOptions, ServeOptions

COULD_NOT_TRY = 2

HELP = """\
usage: helios bench serve | compare | peers | scenario | helios | selftest [flags]

Measures servers of language models over HTTP: Helios, TGI, vLLM and others that speak like them.

  serve      put a load on a server: latencies, throughput, depth, swaps
  compare    the same load on two servers in turns: ratios with confidence intervals
  peers      llama.cpp's server, vLLM's CPU build and Helios in turns, on servers that it starts itself
  scenario   a named run with a promise that it checks
  helios     the experiment of the HELIOS paper, on servers that it starts itself
  selftest   how exact this load generator is on this machine, against a synthetic server

helios bench COMMAND --help tells a command's flags.\
"""

SERVE = """\
Puts a load on a server and measures it.

  helios bench serve                                        8 streams for 30 s on http://127.0.0.1:3000
  helios bench serve --url http://host:8000 --concurrency 64 --requests 500 --out report
  helios bench serve --rate 4 --duration 2m --slo ttft:500ms --slo tpot:50ms
  helios bench serve --input-tokens 512 --output-tokens 128 --sweep concurrency
  helios bench serve --trace azure.csv --trace-speed 4
  helios bench serve --drift 'chat@60s, code@60s, chat@60s' --rate 3 --chat-template

Requests of an open loop start when they are meant to, however slow the server is, and latencies count from
then. The last line of the output is JSON."""

COMPARE = """\
Puts the same load on two servers in turns (A B A B ...) and compares them round by round. A verdict is
given only where the 99% confidence interval allows one.

  helios bench compare --a http://127.0.0.1:8000 --b http://127.0.0.1:3000 --names vLLM,Helios
  helios bench compare --a URL --b URL --concurrency 32 --rounds 8 --same-answers 100%"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    if command in ("", "-h", "--help"):
        print(HELP)
        return 0 if command else COULD_NOT_TRY
    try:
        return _run(command, arguments[1:])
    except (BadQuantity, BadUrl, Unusable) as problem:
        _say(command, str(problem))
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else ""
        _say(command, f"{where}{problem.strerror or problem}")
    except KeyboardInterrupt:
        _say(command, "interrupted")
    return COULD_NOT_TRY


def _say(command: str, problem: str) -> None:
    """Print one sentence on an error."""
    end = "" if problem.endswith(("?", ".")) else "."
    print(f"helios bench {command}: {problem}{end}", file=sys.stderr)


def _run(command: str, argv: Sequence[str]) -> int:
    prog = f"helios bench {command}"
    console = Console()
    match command:
        case "serve":
            from loadgen.commands.serve import serve

            return _loop(serve(flags.read(ServeOptions, argv, prog, SERVE, _keys()), console))
        case "compare":
            from loadgen.commands.compare import compare

            return _loop(compare(flags.read(CompareOptions, argv, prog, COMPARE, _keys()), console))
        case "peers":
            from loadgen.peers.bench import bench as compare_peers
            from loadgen.peers.options import ABOUT as PEERS
            from loadgen.peers.options import PeerOptions

            return _loop(compare_peers(flags.read(PeerOptions, argv, prog, PEERS, _cache()), console))
        case "scenario":
            from loadgen.scenarios.play import about, play

            return _loop(play(flags.read(ScenarioOptions, argv, prog, about(), _keys()), console))
        case "helios":
            from loadgen.paper.bench import bench
            from loadgen.paper.options import ABOUT as PAPER
            from loadgen.paper.options import HeliosOptions

            return _loop(bench(flags.read(HeliosOptions, argv, prog, PAPER), console))
        case "selftest":
            from loadgen.selftest.accuracy import ABOUT, SelftestOptions, selftest

            return selftest(flags.read(SelftestOptions, argv, prog, ABOUT), console)
    print(
        f"helios bench: no command {command!r}; there are serve, compare, peers, scenario, helios, selftest.",
        file=sys.stderr,
    )
    return COULD_NOT_TRY


def _keys() -> dict[str, Any]:
    """API keys from the environment, so that they need not be on a command line."""
    names = {"api_key": "HELIOS_API_KEY", "admin_key": "HELIOS_ADMIN_KEY"}
    return {field: os.environ[name] for field, name in names.items() if name in os.environ}


def _cache() -> dict[str, Any]:
    """The cache of all commands, where the environment moves it."""
    return {"cache_dir": os.environ["HELIOS_CACHE"]} if os.environ.get("HELIOS_CACHE") else {}


def _loop(work: Coroutine[Any, Any, int]) -> int:
    """Run on uvloop."""
    make_room()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


if __name__ == "__main__":
    sys.exit(main())
