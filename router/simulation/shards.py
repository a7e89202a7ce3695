"""Simulated shards without processes, which deliver a shard's answers at the simulated time."""

import asyncio
from collections.abc import Callable
from typing import cast

from router.fleet.client import Answered, Asked, ShardClient
from router.settings.config import Config
from shard.clock import VirtualClock
from shard.messages import Commit, Discard, Prepare, Ready, ShardConfig, Step
from shard.served_models import ServedModels
from shard.sim.sim_runner import SimLoader


class _ShardClock(VirtualClock):
    """A shard's clock, which stands still between its jobs."""

    def set(self, now_ms: float) -> None:
        self._now_ms = now_ms


class VirtualShard:
    """Replaces a `ShardClient`. Runs one job after the other; only preparing runs beside them."""

    is_late = False

    def __init__(self, config: ShardConfig, wake: Callable[[], None]):
        self._loop = asyncio.get_running_loop()
        self._wake = wake
        self._clock = _ShardClock()
        self._shard = ServedModels(config, SimLoader(self._clock), self._clock)
        self._free_at_s = self._loop.time()
        self._answers: list[Answered] = []

    @property
    def ready(self) -> Ready:
        return self._shard.ready()

    @property
    def last_heard(self) -> float:
        return self._loop.time()

    def send(self, message: Asked) -> None:
        match message:
            case Step() | Commit():
                self._free_at_s = self._do(message, max(self._free_at_s, self._loop.time()))
            case Prepare():
                self._do(message, self._loop.time())
            case Discard(epoch):
                self._shard.discard(epoch)

    def take_answers(self) -> list[Answered]:
        answers, self._answers = self._answers, []
        return answers

    def _do(self, message: Step | Commit | Prepare, at_s: float) -> float:
        """Run a message and deliver its answer when it is done; returns that time."""
        self._clock.set(1000 * at_s)
        answer = self._answer(message)
        done_s = self._clock.now_ms() / 1000
        self._loop.call_at(done_s, self._deliver, answer)
        return done_s

    def _answer(self, message: Step | Commit | Prepare) -> Answered:
        match message:
            case Step():
                return self._shard.run(message)
            case Commit():
                return self._shard.commit(message)
            case Prepare():
                return self._shard.prepare(message)

    def _deliver(self, answer: Answered) -> None:
        self._answers.append(answer)
        self._wake()


class VirtualLauncher:
    """A `Launcher` of virtual shards."""

    def __init__(self, config: Config, shard: int):
        del config, shard  # all shards are alike

    async def start(self, config: ShardConfig, wake: Callable[[], None]) -> tuple[ShardClient, Ready]:
        shard = VirtualShard(config, wake)
        return cast(ShardClient, shard), shard.ready

    async def end(self) -> None:
        pass
