"""One measured run: the load, with the live view, scrapes and the server's decisions beside it."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

from loadgen.client.client import END_TIMEOUT_S
from loadgen.client.scrape import Scraper
from loadgen.load.live import View
from loadgen.load.plan import Plan
from loadgen.load.progress import Progress
from loadgen.load.run import Pace, Run
from loadgen.load.runner import Runner
from loadgen.load.target import Target
from loadgen.traffic.workloads import Workload

PICTURE_S = 0.5


class Screen:
    """The display during a run: a view, its title, and a note."""

    def __init__(self, view: View, title: str):
        self.view = view
        self.title = title
        self.note = ""


async def measure(target: Target, plan: Plan, screen: Screen, seed_offset: int = 0) -> Run:
    """Run a plan once."""
    return await measure_load(target, plan.workload(target.filler, seed_offset), plan.pace(), screen)


async def measure_load(target: Target, workload: Workload, pace: Pace, screen: Screen) -> Run:
    """Run a load and gather everything around it. Ctrl-C ends it early, keeping its results."""
    runner = Runner(target.client, target.server_info, workload, target.request_options, pace)
    scraper = Scraper(target.client)
    async with _beside(scraper.run(), _draw(runner, pace, screen)):
        with _stopping_on_interrupt(runner):
            run = await runner.carry_out()
    run.scrapes = scraper.scrapes
    if target.server_info.kind == "helios":
        run.decisions = await target.operator.decisions(run.began_at_s - 1)
        run.state = await target.operator.state() or {}
    run.notes = [*target.notes, *_remarks(run, runner)]
    return run


def _remarks(run: Run, runner: Runner) -> list[str]:
    """Caveats about the figures."""
    found = []
    if runner.is_interrupted:
        found.append("Interrupted: what was open was cut.")
    early = sum(record.finish_reason not in (None, "length") for record in run.records)
    if runner.request_options.ignore_eos and early:
        found.append(f"{early} answers ended by themselves, although the server was told to ignore that.")
    return found


@contextlib.asynccontextmanager
async def _beside(*companions: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run background tasks while the context is open."""
    tasks = [asyncio.create_task(companion) for companion in companions]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=END_TIMEOUT_S)


async def _draw(runner: Runner, pace: Pace, screen: Screen) -> None:
    progress = Progress(screen.title, runner.records, runner.meter)
    planned_s = None if pace.duration_s == float("inf") else pace.duration_s
    while True:
        await asyncio.sleep(PICTURE_S)
        screen.view.show(progress.snapshot(planned_s, pace.num_requests, screen.note))


@contextlib.contextmanager
def _stopping_on_interrupt(runner: Runner) -> Iterator[None]:
    """The first Ctrl-C ends the run cleanly; a second one interrupts as usual."""
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        runner.interrupt()

    try:
        loop.add_signal_handler(signal.SIGINT, interrupt)
    except (ValueError, RuntimeError):  # not on the main thread: a test's own loop
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
