"""A shard's end of the connection, over a socket pair and with runners of a few lines."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from shard.messages import (
    PROTOCOL_VERSION,
    Commit,
    Committed,
    Discard,
    Failed,
    FrameReader,
    Hello,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Ready,
    ShardConfig,
    Step,
    StepOutput,
    SwapFailed,
    ToRouter,
    ToShard,
    frame,
)
from shard.served_models import Unwanted
from shard.server import Connection, Refused, Runner, Server

CONFIG = ShardConfig("m")
LOADING = f"Loading {CONFIG.model} on {CONFIG.device}"
DEBUG = "--log-level debug shows where"
MEMORY = "lower --kv-cache-bytes, --max-batch-size or --num-shards, or serve a smaller model"
READY = Ready("m", "v1", "sim", "float32", 30, 30, 1000, 100, 16, 50, [2], 0, 0, 0.0)


class SlowRunner:
    """A runner that waits in every step until released."""

    def __init__(self, config: ShardConfig) -> None:
        self.go = threading.Semaphore(0)

    def ready(self) -> Ready:
        return READY

    def run(self, step: Step) -> StepOutput:
        self.go.acquire()
        return StepOutput(step.number, [], [], 50, 1)

    def prepare(self, prepare: Prepare) -> Prepared | SwapFailed:
        self.go.acquire()
        return Prepared(prepare.epoch, READY, {})

    def commit(self, commit: Commit) -> Committed | SwapFailed:
        return Committed(commit.epoch, READY, 0.0, {})

    def discard(self, epoch: int) -> None:
        self.go.release()


class BrokenRunner(SlowRunner):
    def run(self, step: Step) -> StepOutput:
        raise ArithmeticError("NaN in layer 7")


class Router:
    """The router's end of the connection."""

    def __init__(self, sock: socket.socket):
        sock.settimeout(60)
        self._sock = sock
        self._messages = self._receive()

    def say(self, *messages: ToShard) -> None:
        self._sock.sendall(b"".join(bytes(frame(message)) for message in messages))

    def hear(self) -> ToRouter | None:
        """The next message; None at the end."""
        return next(self._messages, None)

    def hang_up(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)

    def _receive(self) -> Iterator[ToRouter]:
        frames: FrameReader[ToRouter] = FrameReader(ToRouter)
        while data := self._sock.recv(65536):
            yield from frames.feed(data)


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Router]]:
    theirs, ours = socket.socketpair()
    with theirs, ours:
        yield Connection(theirs), Router(ours)


class Running:
    """A server at work on a thread of its own."""

    def __init__(
        self, connection: Connection, make: Callable[[ShardConfig], Runner], config: ShardConfig = CONFIG
    ):
        self._server = Server(connection, config, make)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.status = self._server.run()

    def end(self) -> int:
        self._thread.join(60)
        return self.status


def test_a_ping_is_answered_while_a_step_runs(ends: tuple[Connection, Router]) -> None:
    connection, router = ends
    runner = SlowRunner(CONFIG)
    running = Running(connection, lambda config: runner)
    assert router.hear() == READY
    router.say(Step(1, []), Step(2, []), Ping(7))
    assert router.hear() == Pong(7)
    runner.go.release(2)
    assert [message.number for message in (router.hear(), router.hear())] == [1, 2]
    router.hang_up()
    assert running.end() == 0


def test_steps_go_on_while_a_model_is_prepared_and_a_commit_waits_its_turn(
    ends: tuple[Connection, Router],
) -> None:
    connection, router = ends
    runner = SlowRunner(CONFIG)
    running = Running(connection, lambda config: runner)
    assert router.hear() == READY
    router.say(Prepare(1, CONFIG), Step(1, []), Step(2, []), Commit(1), Ping(7))
    assert router.hear() == Pong(7)
    runner.go.release(3)
    heard = [router.hear() for _ in range(4)]
    assert sorted(type(message).__name__ for message in heard) == [
        "Committed", "Prepared", "StepOutput", "StepOutput",
    ]  # fmt: skip
    assert [m.number for m in heard if isinstance(m, StepOutput)] == [1, 2]
    steps_and_commit = [message for message in heard if not isinstance(message, Prepared)]
    assert isinstance(steps_and_commit[-1], Committed)
    router.hang_up()
    assert running.end() == 0


def test_a_discard_is_heard_while_the_model_is_prepared(ends: tuple[Connection, Router]) -> None:
    connection, router = ends
    running = Running(connection, SlowRunner)
    assert router.hear() == READY
    router.say(Prepare(1, CONFIG), Discard(1))
    assert isinstance(router.hear(), Prepared)
    router.hang_up()
    assert running.end() == 0


class Unpreparable(SlowRunner):
    def __init__(self, config: ShardConfig, error: Exception) -> None:
        super().__init__(config)
        self.error = error
        self.go.release(10)

    def prepare(self, prepare: Prepare) -> Prepared | SwapFailed:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("tensor 'x' is missing"), f"{LOADING} failed (OSError: tensor 'x' is missing): {DEBUG}."),
        (MemoryError(), f"{LOADING} takes more memory than there is: {MEMORY}."),
        (Unwanted(), "It was discarded while being prepared."),
        (RuntimeError("out of luck"), f"{LOADING} failed (RuntimeError: out of luck): {DEBUG}."),
    ],
)
def test_what_cannot_be_prepared_is_said_and_steps_go_on(
    ends: tuple[Connection, Router],
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    reason: str,
) -> None:
    connection, router = ends
    running = Running(connection, lambda config: Unpreparable(config, error))
    assert router.hear() == READY
    router.say(Prepare(1, CONFIG))
    assert router.hear() == SwapFailed(1, reason)
    router.say(Step(1, []))
    assert isinstance(router.hear(), StepOutput)
    router.hang_up()
    assert running.end() == 0
    assert "Traceback" not in capsys.readouterr().err


def test_a_runner_that_breaks_is_reported_and_ends_the_shard(
    ends: tuple[Connection, Router], caplog: pytest.LogCaptureFixture
) -> None:
    connection, router = ends
    running = Running(connection, BrokenRunner)
    assert router.hear() == READY
    router.say(Step(1, []))
    assert router.hear() == Failed("NaN in layer 7", permanent=False)
    assert router.hear() is None
    router.hang_up()
    assert running.end() == 1
    assert "ArithmeticError" in caplog.text


@pytest.mark.parametrize(
    ("error", "device", "reason", "permanent"),
    [
        (ValueError("no such model"), "cpu", f"failed (ValueError: no such model): {DEBUG}.", True),
        (MemoryError(), "cpu", f"takes more memory than there is: {MEMORY}.", True),
        (RuntimeError("broken"), "cpu", f"failed (RuntimeError: broken): {DEBUG}.", True),
        (RuntimeError("it fell off"), "cuda:0", f"failed (RuntimeError: it fell off): {DEBUG}.", False),
    ],
)
def test_a_model_that_cannot_be_loaded_is_reported_in_a_sentence(
    ends: tuple[Connection, Router], error: Exception, device: str, reason: str, permanent: bool
) -> None:
    def fail(config: ShardConfig) -> Runner:
        raise error

    connection, router = ends
    running = Running(connection, fail, msgspec.structs.replace(CONFIG, device=device))
    assert router.hear() == Failed(f"Loading {CONFIG.model} on {device} {reason}", permanent)
    router.hang_up()
    assert running.end() == 1


def test_a_router_with_the_secret_is_let_in(ends: tuple[Connection, Router]) -> None:
    connection, router = ends
    hello = Hello(PROTOCOL_VERSION, "sesame", 0, CONFIG)
    router.say(hello, Ping(1))
    assert connection.receive_hello("sesame") == hello
    assert next(connection.messages) == Ping(1)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (Hello(PROTOCOL_VERSION, "barley", 0, CONFIG), "secret"),
        (Hello(PROTOCOL_VERSION, "", 0, CONFIG), "secret"),
        (Hello(PROTOCOL_VERSION + 1, "sesame", 0, CONFIG), "protocol"),
        (Hello(PROTOCOL_VERSION, "x" * 100_000, 0, CONFIG), "secret"),
        (Ping(1), "secret"),
    ],
)
def test_others_are_turned_away_and_told_why(
    ends: tuple[Connection, Router], first: ToShard, reason: str
) -> None:
    connection, router = ends
    router.say(first, Ping(2))
    threading.Timer(0.2, router.hang_up).start()
    with pytest.raises(Refused, match=reason):
        connection.receive_hello("sesame")
    answer = router.hear()
    assert isinstance(answer, Failed) and answer.permanent and reason in answer.reason
    assert router.hear() is None


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Router]]:
    """A simulated shard in a process of its own, ready."""
    theirs, ours = socket.socketpair()
    command = [sys.executable, "-m", "shard", "--fd", str(theirs.fileno())]
    with theirs, ours:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        try:
            theirs.close()
            router = Router(ours)
            router.say(Hello(PROTOCOL_VERSION, "", 0, ShardConfig("m", "sim")))
            assert isinstance(router.hear(), Ready)
            yield process, router
        finally:
            process.kill()
            process.wait(20)


def slow_to_load(folder: Path) -> ShardConfig:
    path = folder / "slow.json"
    path.write_text('{"load_ms": 600000}')
    return ShardConfig("slow", "sim", cost_model=str(path))


def test_a_router_that_goes_while_a_model_is_prepared_leaves_no_process_behind(
    process: tuple[subprocess.Popen[bytes], Router], tmp_path: Path
) -> None:
    shard, router = process
    router.say(Prepare(1, slow_to_load(tmp_path)), Step(1, []))
    assert isinstance(router.hear(), StepOutput)
    router.hang_up()
    assert shard.wait(20) == 0


def test_a_model_is_changed_and_another_given_up_over_the_wire(
    process: tuple[subprocess.Popen[bytes], Router], tmp_path: Path
) -> None:
    _, router = process
    router.say(Prepare(1, slow_to_load(tmp_path)), Step(1, []))
    assert isinstance(router.hear(), StepOutput)
    router.say(Discard(1), Prepare(2, ShardConfig("m", "sim", num_layers=10)))
    assert router.hear() == SwapFailed(1, "It was discarded while being prepared.")
    prepared = router.hear()
    assert isinstance(prepared, Prepared) and prepared.ready.depth == 10
    router.say(Commit(2), Step(2, []))
    committed = router.hear()
    assert isinstance(committed, Committed) and committed.ready.num_blocks == prepared.ready.num_blocks
    output = router.hear()
    assert isinstance(output, StepOutput) and output.epoch == 2
