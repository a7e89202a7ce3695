"""`helios serve`: from flags to a running server, and every way in which that can fail, in one sentence each.

The only module of the router that reads the environment.
"""

import asyncio
import errno
import faulthandler
import importlib.util
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from os.path import expanduser  # leaves a home that is not known as it is written
from pathlib import Path

import uvloop

from router import app
from router.api.addresses import listen_at
from router.api.auth import who_may
from router.catalog import memory_check
from router.catalog.candidate_config import begun_with, repository_of
from router.catalog.catalog import Catalog, CatalogEntry, entry_of
from router.catalog.repository import Repository
from router.child import start_child
from router.fleet.client import ShardDied
from router.settings import logs, machine, options
from router.settings.config import Config
from router.settings.options import ConfigError
from telemetry.link import check_url
from telemetry.open_store import open_store

log = logging.getLogger(__name__)

PROGRAM = "helios serve"
_HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
STOP_GRACE_S = 45.0  # after the time running requests get; a stop that takes longer hangs, and is ended
SAME_SIGNAL_S = 1.0  # a SIGTERM that comes so soon after the first is the same one, sent twice
_RESOLVER_END_S = 10.0  # for the resolver to remove unfinished files
DESCRIPTION = """\
Serve a model over HTTP. Each flag can also be set by an environment variable of the same name in capitals
(MODEL_ID, PORT, ...) or in a TOML file; a flag wins over the environment, and that over the file."""


class CannotServe(Exception):
    """The server cannot start. The message is one sentence with what to do; "" if it was printed already."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 after a requested shutdown, 2 for wrong settings, 1 if it cannot serve."""
    _open_standard_streams()
    signal.signal(signal.SIGTERM, _exit_on_signal)  # until the event loop takes signals over
    try:
        argv = sys.argv[1:] if argv is None else argv
        config = read_config(argv, os.environ)
        options.take_secrets(Config, os.environ)  # children would inherit them
        check_redis(config)
        check_tracing(config)
        machine.raise_file_limit()
        repository = repository_of(config)
        config = begun_with(config, repository).settle(machine.inspect(os.environ))
        logs.set_up(config.log_level, config.json_output)
        _warn_of_secrets(argv)
        serve(config, repository)
    except ConfigError as error:
        return _fail(f"{error} See {PROGRAM} --help.", 2)
    except CannotServe as error:
        log.debug("It cannot serve.", exc_info=True)
        return _fail(str(error), 1)
    except Exception as error:
        log.debug("The server failed.", exc_info=True)
        what = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(".")
        return _fail(f"It cannot go on ({what}): --log-level debug shows where.", 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def read_config(argv: Sequence[str], environment: Mapping[str, str]) -> Config:
    """The settings as they are given. Raises `ConfigError`."""
    environment = dict(environment)
    if environment.get("HOSTNAME") == socket.gethostname():
        del environment["HOSTNAME"]  # shells and containers set it to the machine's name
    parser = options.OneSentenceParser(
        prog=PROGRAM, description=DESCRIPTION, usage=f"{PROGRAM} [--model-id ID] [--port N] [flags]"
    )
    return options.read(Config, parser, argv, environment).with_keys_of_files()


def check_redis(config: Config) -> None:
    """Raises `ConfigError` for a malformed Redis URL. Serving does not need Redis to answer."""
    try:
        if config.redis_url is not None:
            check_url(config.redis_url)
    except ValueError as error:
        raise ConfigError("redis_url", f"redis_url {error}") from None


def check_tracing(config: Config) -> None:
    """Raises `ConfigError` if traces are asked for and OpenTelemetry is not installed."""
    if config.otlp_endpoint is not None and importlib.util.find_spec("opentelemetry") is None:
        raise ConfigError(
            "otlp_endpoint", "otlp_endpoint needs OpenTelemetry: pip install 'helios-serve[otel]'."
        )


def _warn_of_secrets(argv: Sequence[str]) -> None:
    for flag in options.shown_secrets(Config, argv):
        log.warning(
            "%s shows to every user of this machine who lists processes; a file or the environment do not.",
            flag,
        )


def serve(config: Config, repository: Repository) -> None:
    """Serve until told to stop. Raises `CannotServe`; cheap checks come first."""
    check_address(config.hostname, config.port)
    entries = find_models(config, repository)
    for name in _HUB_TOKENS:
        os.environ.pop(name, None)  # only fetching needs them, and that is done
    shortage = memory_check.shortage(config, entries[0].folder, machine.inspect(os.environ))
    if shortage is not None:
        raise CannotServe(shortage)
    uvloop.run(_serve(config, Catalog(config, repository, entries)))


def check_address(hostname: str | None, port: int) -> None:
    """Raises `CannotServe` if the address cannot be listened on. Called before a model is loaded."""
    try:
        for probe in listen_at(hostname, port):
            probe.close()
    except OSError as error:
        raise CannotServe(_why_not_listen(error, hostname, port) or f"{error}.") from None


def _why_not_listen(error: OSError, hostname: str | None, port: int) -> str | None:
    """The reason for a failed bind, in one sentence; None for an error of another kind."""
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} is taken by another process: stop that one, or choose another port with --port."
    if error.errno == errno.EACCES:
        return f"Port {port} may not be listened on by this user: choose one above 1023 with --port."
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"{hostname} is not an address of this machine: set --hostname to one, such as 127.0.0.1."
    return None


def find_models(config: Config, repository: Repository) -> list[CatalogEntry]:
    """Every candidate with its model folder. Raises `CannotServe` if the first candidate has none."""
    folders: dict[tuple[str, str | None], Path] = {}
    entries: list[CatalogEntry] = []
    for candidate in repository.candidates:
        name = (candidate.model, candidate.revision)
        try:
            if name not in folders:
                folders[name] = resolve_model(config, *name)
            entries.append(entry_of(config, candidate, folders[name]))
        except (CannotServe, OSError, ValueError, KeyError) as error:
            if not entries:
                raise CannotServe(str(error)) from error
            entries.append(
                CatalogEntry(
                    candidate, Path(candidate.model), 0, unavailable_reason="its model cannot be had here."
                )
            )
    return entries


def resolve_model(config: Config, model_id: str, revision: str | None) -> Path:
    """A complete model folder. Found or made by a process of its own, since making one may need torch.

    Raises `CannotServe` without a message: that process has printed why.
    """
    local = Path(expanduser(model_id))
    model = str(local.resolve()) if local.exists() else model_id
    command = [sys.executable, "-m", "shard.fetch.resolve", model, "--end-with-stdin"]
    command += ["--cache", str(config.cache.resolve()), "--log-level", config.log_level]
    if revision is not None:
        command += ["--revision", revision]
    # The process ends when its standard input closes, so with this process at the latest. It may fetch
    # gigabytes, so no timeout bounds it but the network's own, and Ctrl-C.
    process = start_child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            answer = process.stdout.read().decode()
        except BaseException:
            process.terminate()
            raise
        finally:
            status = _exit_status(process)
    if status < 0:
        raise CannotServe(
            f"The process that prepared {model_id} was ended by {signal.Signals(-status).name}: "
            "most likely the machine has run out of memory."
        )
    if status != 0:
        raise CannotServe("")
    return Path(answer.strip())


def _exit_status(process: subprocess.Popen[bytes]) -> int:
    """Exit status of a process that is about to end, after waiting briefly for it."""
    try:
        return process.wait(_RESOLVER_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(_RESOLVER_END_S)


async def _serve(config: Config, catalog: Catalog) -> None:
    """Serve until SIGTERM or Ctrl-C, then let running requests end. A second signal ends the process at once,
    except a SIGTERM within `SAME_SIGNAL_S`: make forwards a signal that its whole process group was sent.

    A stop that hangs is ended too, after printing where it hung.
    """
    stop, told_at = asyncio.Event(), 0.0

    def on_signal(number: int) -> None:
        nonlocal told_at
        if not stop.is_set():
            stop.set()
            told_at = loop.time()
            faulthandler.dump_traceback_later(config.shutdown_timeout_ms / 1000 + STOP_GRACE_S, exit=True)
        elif number == signal.SIGINT or loop.time() > told_at + SAME_SIGNAL_S:
            os._exit(1)  # shards and Redis end themselves when their parent is gone

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    try:
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        async with open_store(config.redis_url, config.deployment, name) as store:
            await app.serve(config, catalog, stop, lambda address: _announce(config, address), store)
    except ShardDied as error:
        raise CannotServe(error.reason) from error
    except OSError as error:  # the port was taken meanwhile, or the folder cannot be read
        raise CannotServe(_why_not_listen(error, config.hostname, config.port) or f"{error}.") from error


def _announce(config: Config, address: str) -> None:
    """The one line that tells a newcomer what to do next."""
    url = address.replace("//0.0.0.0:", "//localhost:").replace("//[::]:", "//localhost:")
    key = ' -H "authorization: Bearer $API_KEY"' if config.api_key else ""
    body = '{"inputs": "Once upon a time", "parameters": {"max_new_tokens": 40}}'
    marks = f" ({', '.join(config.marks)}: no model's answers)" if config.marks else ""
    print(who_may(config))
    print(
        f"Serving {config.model_name}{marks} on {url}  Try: curl {url}/generate{key} "
        f"-H 'content-type: application/json' -d '{body}'",
        flush=True,
    )


def _open_standard_streams() -> None:
    """Open /dev/null for each closed standard stream: the next file opened would take its number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _exit_on_signal(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _fail(sentence: str, code: int) -> int:
    if sentence:
        print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
