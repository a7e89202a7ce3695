"""Runs a load: starts jobs at their intended times, holds conversations, gathers records.

Jobs are drawn ahead of time, and a separate thread triggers open-loop starts, so that neither a slow server
nor the client's own work shifts the schedule. A start's remaining delay is in its record.
"""

import asyncio
import contextlib
import gc
import time
from collections import deque
from collections.abc import Iterator
from time import monotonic, process_time

from loadgen.client.client import END_TIMEOUT_S, Client
from loadgen.client.dialects import Ask, Message
from loadgen.client.records import Outcome, Record
from loadgen.client.server_info import ServerInfo
from loadgen.client.template import plain_text
from loadgen.load.pacer import LagMeter, Pacer
from loadgen.load.run import Pace, RequestOptions, Run
from loadgen.traffic.workloads import Job, Workload

AHEAD_S, MOST_AHEAD = 1.0, 256  # how far ahead jobs are drawn
AFTER_FAILURE_S, MOST_PAUSE_S = 0.1, 1.0
LEAD_S = 0.2  # time to draw the first jobs before an open loop starts


class Runner:
    """One run of a workload against one server."""

    def __init__(
        self,
        client: Client,
        server_info: ServerInfo,
        workload: Workload,
        request_options: RequestOptions,
        pace: Pace,
    ):
        self.records: list[Record] = []
        self.meter = LagMeter()
        self._client = client
        self._workload = workload
        self.request_options = request_options
        self._pace = pace
        self.is_interrupted = False
        self._is_stopped = False
        self._all_started = asyncio.Event()
        self._slots = asyncio.Semaphore(pace.concurrency) if pace.is_open_loop and pace.concurrency else None
        self._held: set[asyncio.Task[Record]] = set()
        self._next_job = 0
        self._last_start = 0.0
        self.run = Run(
            label=client.address.url,
            url=client.address.url,
            server_info=server_info,
            is_open_loop=pace.is_open_loop,
            concurrency=pace.concurrency,
            began=monotonic(),
            began_at_s=time.time(),
        )

    def interrupt(self) -> None:
        """End the run early."""
        self.is_interrupted = True
        self.stop()

    def stop(self) -> None:
        """Start nothing more and cancel open streams; the run ends with its results so far."""
        self._is_stopped = True
        self._all_started.set()
        for task in self._held:
            task.cancel()

    async def carry_out(self) -> Run:
        """Run to the end; returns everything recorded."""
        run = self.run
        meter = self.meter
        with _quiet_collector():
            lead_s = LEAD_S if self._pace.is_open_loop else 0.0
            run.began, run.began_at_s = monotonic() + lead_s, time.time() + lead_s
            cpu_before = process_time()
            meter.start()
            sweeper = asyncio.create_task(_collect_young())
            try:
                await (self._open_loop() if self._pace.is_open_loop else self._closed_loop())
            finally:
                sweeper.cancel()
                meter.stop()
        run.ended = monotonic()
        run.cpu_s = process_time() - cpu_before
        run.last_start = self._last_start or run.ended
        run.records, run.lags = self.records, meter.lags
        return run

    def _is_over(self, elapsed_s: float) -> bool:
        limit = self._pace.num_requests
        return (
            self._is_stopped
            or elapsed_s >= self._pace.duration_s
            or (limit is not None and self._next_job >= limit)
        )

    def _draw(self, at_s: float) -> Job:
        job = self._workload.draw(self._next_job, at_s)
        self._next_job += 1
        return job

    async def _closed_loop(self) -> None:
        """Run `concurrency` workers, each with one conversation after another."""
        pace = self._pace
        workers = [asyncio.create_task(self._work()) for _ in range(pace.concurrency or 1)]
        _, late = await asyncio.wait(workers, timeout=_finite(pace.duration_s + pace.drain_s))
        if late:
            self.stop()
            await asyncio.wait(late, timeout=END_TIMEOUT_S)

    async def _work(self) -> None:
        while not self._is_over(elapsed := monotonic() - self.run.began):
            held = self._hold(self._draw(elapsed), self.run.began + elapsed)
            await asyncio.wait([held])
            if not held.cancelled():
                await asyncio.sleep(_pause_s(held.result()))

    async def _open_loop(self) -> None:
        """Start jobs at the times of the pace, independent of the server."""
        drawn: deque[Job] = deque()
        pacer = Pacer(
            self._absolute(drawn), lambda due: self._start(drawn.popleft(), due), self._all_started.set
        )
        pacer.start()
        await self._all_started.wait()
        pacer.stop()
        if pacer.error is not None:
            raise pacer.error
        if self._held:
            _, late = await asyncio.wait(self._held, timeout=_finite(self._pace.drain_s))
            self.stop()
            if late:
                await asyncio.wait(late, timeout=END_TIMEOUT_S)

    def _absolute(self, drawn: deque[Job]) -> Iterator[float]:
        """Absolute start times, each yielded once the jobs of the following second are drawn.

        Runs on the pacer's thread, which has time between starts.
        """
        ahead: deque[float] = deque()
        for at_s in self._pace.times or ():
            if self._is_over(at_s):
                break
            drawn.append(self._draw(at_s))
            ahead.append(at_s)
            while at_s - ahead[0] > AHEAD_S or len(ahead) > MOST_AHEAD:
                yield self.run.began + ahead.popleft()
        yield from (self.run.began + at_s for at_s in ahead)

    def _start(self, job: Job, due: float) -> None:
        if not self._is_stopped:
            self._hold(job, due)

    def _hold(self, job: Job, intended: float) -> asyncio.Task[Record]:
        self._last_start = intended
        task = asyncio.create_task(self._converse_in_slot(job, intended))
        self._held.add(task)
        task.add_done_callback(self._held.discard)
        return task

    async def _converse_in_slot(self, job: Job, intended: float) -> Record:
        async with self._slots or contextlib.nullcontext():
            return await self._converse(job, intended)

    async def _converse(self, job: Job, intended: float) -> Record:
        """Hold one conversation, turn by turn; returns the last record."""
        history = (Message("system", job.system),) if job.system else ()
        for turn, said in enumerate(job.turns):
            if turn:
                intended = monotonic() + job.think_s[turn - 1]
                await asyncio.sleep(intended - monotonic())
            history = (*history, Message("user", said))
            record = await self._ask(job, turn, history, intended)
            if record.outcome is not Outcome.OK or self._is_stopped:
                break
            history = (*history, Message("assistant", record.text))
        return record

    async def _ask(self, job: Job, turn: int, history: tuple[Message, ...], intended: float) -> Record:
        request_options = self.request_options
        text = self._text(history)
        record = Record(
            number=len(self.records),
            group=job.group,
            session=job.number,
            turn=turn,
            prompt=text,
            max_tokens=job.max_tokens[turn],
            intended=intended,
            begun=monotonic(),
        )
        self.records.append(record)
        ask = Ask(
            messages=history,
            text=text,
            max_tokens=job.max_tokens[turn],
            ignore_eos=request_options.ignore_eos,
            temperature=request_options.temperature,
            seed=job.number if request_options.temperature > 0 else None,
            exit_threshold=request_options.exit_threshold,
            exact=request_options.exact,
            extra=request_options.extra,
        )
        await self._client.stream(request_options.dialect, request_options.model, ask, record, job.cancel)
        return record

    def _text(self, history: tuple[Message, ...]) -> str:
        template = self.request_options.template
        return plain_text(history) if template is None else template.render(history)


def _pause_s(record: Record) -> float:
    """Pause of a closed-loop worker before its next request.

    After a refusal it waits as the server says, after a failure for a moment, so that a worker does not spin
    on a server that refuses within a millisecond.
    """
    if record.outcome is Outcome.REFUSED:
        pause_s = AFTER_FAILURE_S if record.retry_after_s is None else record.retry_after_s
        return min(MOST_PAUSE_S, max(0.0, pause_s))
    return AFTER_FAILURE_S if record.outcome.is_failure else 0.0


def _finite(patience_s: float) -> float | None:
    return None if patience_s == float("inf") else patience_s


@contextlib.contextmanager
def _quiet_collector() -> Iterator[None]:
    """Prevent full garbage collections while measuring: each would block for tens of milliseconds."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


async def _collect_young() -> None:
    """Collect the young generation often, so that cycles do not accumulate and each collection is short."""
    while True:
        await asyncio.sleep(0.1)
        gc.collect(0)
