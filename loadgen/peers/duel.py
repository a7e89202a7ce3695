"""One peer against Helios: both started, asked in turns under every load, stopped."""

import functools
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec

from loadgen.client.server_info import Unusable
from loadgen.commands.compare import Side, client_remarks, paired_rounds
from loadgen.load.measure import Screen
from loadgen.load.plan import Plan
from loadgen.load.single_request import ask_alone
from loadgen.load.target import Target, reach
from loadgen.peers.launch import Launch
from loadgen.peers.loads import Load
from loadgen.results.comparison import Ratio, compare_rounds
from loadgen.results.summary import Summary
from loadgen.servers.process import RunningServer, cores_used, paused, running

IDLE_S = 1.0
MOST_IDLE_CORES = 0.05
WARM_PROMPT, WARM_TOKENS = 100, 16


class Outcome(msgspec.Struct, frozen=True):
    """One load's rounds on both servers, the peer's first, and their ratios, Helios' over the peer's."""

    load: str
    shown: tuple[str, ...]
    ratios: list[Ratio]
    rounds: tuple[list[Summary], list[Summary]]

    @property
    def failed(self) -> int:
        """Requests without a whole answer."""
        return sum(sum(summary.failures.values()) for side in self.rounds for summary in side)


class Duel(msgspec.Struct, frozen=True):
    """All loads on one peer and Helios. `idle_cores`: CPU use just after an answer, None if unknown."""

    peer: str
    version: str
    weights: str
    commands: dict[str, str]
    idle_cores: dict[str, float | None]
    outcomes: list[Outcome]
    notes: list[str]


class Duelist(msgspec.Struct, frozen=True):
    """One of two servers. `spins`: it uses cores while idle, and is stopped in the other one's turns."""

    name: str
    server: RunningServer
    spins: bool

    @property
    def to_pause(self) -> list[int]:
        return [self.server.group] if self.spins else []


class Plans(msgspec.Struct, frozen=True):
    """What is run: the loads, and how often."""

    loads: Sequence[Load]
    num_rounds: int


async def duel(launch: Launch, version: str, plans: Plans, logs: Path, screen: Screen) -> Duel:
    """Compare one peer with Helios. Raises `Unusable` with the end of a server's log."""
    names = (launch.peer.name, launch.helios.name)
    async with AsyncExitStack() as stack:
        servers = []
        for command in (launch.peer, launch.helios):
            screen.title = f"starting {command.name}"
            log = logs / f"{command.name.lower()}.log"
            servers.append(await stack.enter_async_context(running(command, log)))
        screen.title = "warming up"
        idle = [await _warm(server, plans.loads[0].plan) for server in servers]
        duelists = [
            Duelist(name, server, cores is not None and cores > MOST_IDLE_CORES)
            for name, server, cores in zip(names, servers, idle, strict=True)
        ]
        outcomes = [await _outcome(load, duelists, plans.num_rounds, screen) for load in plans.loads]
    return Duel(
        peer=launch.peer.name,
        version=version,
        weights=launch.weights,
        commands={name: " ".join(server.command) for name, server in zip(names, servers, strict=True)},
        idle_cores=dict(zip(names, idle, strict=True)),
        outcomes=outcomes,
        notes=[*_idle_notes(names, idle), *_remarks(outcomes), *_token_notes(names, outcomes)],
    )


async def _warm(server: RunningServer, plan: Plan) -> float | None:
    """Ask once, then watch the server do nothing: threads that spin would take cores from the other one."""
    async with reach(server.url, plan) as target:
        record = await ask_alone(target, target.filler.prompt(WARM_PROMPT, random.Random(0)), WARM_TOKENS)
        if record.outcome.is_failure:
            raise Unusable(f"{server.url} does not answer: {record.detail}")
        return await cores_used(server.group, IDLE_S)


async def _outcome(load: Load, duelists: Sequence[Duelist], num_rounds: int, screen: Screen) -> Outcome:
    async with _targets([duelist.server for duelist in duelists], load.plan) as targets:
        sides = [
            Side(f"{duelist.name}, {load.name}", target, load.plan, functools.partial(paused, other.to_pause))
            for duelist, other, target in zip(duelists, reversed(duelists), targets, strict=True)
        ]
        rounds = await paired_rounds(sides[0], sides[1], num_rounds, screen)
    summaries = ([measured.summary for measured in rounds[0]], [measured.summary for measured in rounds[1]])
    return Outcome(load.name, load.measures, compare_rounds(*summaries), summaries)


@asynccontextmanager
async def _targets(servers: Sequence[RunningServer], plan: Plan) -> AsyncIterator[tuple[Target, Target]]:
    """Both servers, asked with the prompts of Helios, which can count tokens: the model is the same."""
    async with reach(servers[0].url, plan) as peer, reach(servers[1].url, plan) as helios:
        yield msgspec.structs.replace(peer, filler=helios.filler, notes=[]), helios


def _idle_notes(names: Sequence[str], idle: Sequence[float | None]) -> list[str]:
    return [
        f"{name} keeps {cores:.2f} cores busy while idle: it was stopped during the other one's turns."
        for name, cores in zip(names, idle, strict=True)
        if cores is not None and cores > MOST_IDLE_CORES
    ]


def _remarks(outcomes: Sequence[Outcome]) -> list[str]:
    summaries = [summary for outcome in outcomes for side in outcome.rounds for summary in side]
    failures = [
        f"{summary.label}: {count} x {reason}"
        for summary in summaries
        for reason, count in summary.failures.items()
    ]
    return failures + client_remarks(summaries)


def _token_notes(names: Sequence[str], outcomes: Sequence[Outcome]) -> list[str]:
    """Loads in which the two servers counted different lengths: their rates are not of equal work."""
    notes = []
    for outcome in outcomes:
        for kind in ("input_tokens", "output_tokens"):
            means = [_mean(side, kind) for side in outcome.rounds]
            if None not in means and len({round(mean or 0.0, 1) for mean in means}) > 1:
                told = ", ".join(f"{name} {mean:.1f}" for name, mean in zip(names, means, strict=True))
                notes.append(f"{outcome.load}: unequal {kind.replace('_', ' ')} a request: {told}.")
    return notes


def _mean(side: Sequence[Summary], kind: str) -> float | None:
    found = [getattr(summary, kind) for summary in side]
    known = [distribution for distribution in found if distribution is not None]
    total = sum(distribution.count for distribution in known)
    return sum(distribution.mean * distribution.count for distribution in known) / total if total else None
