"""The structs of a scenario: promises, results, and its context of server, display and size."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from loadgen.client.records import Record
from loadgen.load.measure import Screen, measure
from loadgen.load.options import LoadOptions, ScenarioOptions
from loadgen.load.plan import Plan, plan_of, settings_of
from loadgen.load.target import Target, reach
from loadgen.report.page_parts import Section
from loadgen.results.summary import Measured, Summary, summarise


class Promise(msgspec.Struct, frozen=True):
    """A property that a scenario checks, and the finding."""

    says: str
    is_kept: bool
    found: str


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a scenario. Only the first run's records are written to files."""

    promises: list[Promise]
    runs: list[Measured]
    figures: dict[str, Any] = {}
    sections: Sequence[Section] = ()  # for the page
    lines: Sequence[str] = ()  # for the terminal


class ScenarioContext:
    """The context of a scenario: server, display, options."""

    def __init__(self, options: ScenarioOptions, screen: Screen):
        self.options = options
        self.screen = screen

    def scaled(self, amount: float) -> float:
        """A duration or size scaled by the user's option."""
        return amount * self.options.scale

    def seconds(self, amount: float) -> str:
        return f"{self.scaled(amount):g}s"

    def count(self, amount: int, least: int = 1) -> int:
        return max(least, round(self.scaled(amount)))

    def plan(self, **load: Any) -> Plan:
        """A plan, with the user's options applied."""
        options = self.options
        common = {
            "dialect": options.dialect,
            "api_key": options.api_key,
            "admin_key": options.admin_key,
            "seed": options.seed,
        }
        return plan_of(LoadOptions(**common | load))

    def prompts(self, workload: str) -> dict[str, Any]:
        """Options for the shipped prompts, or the user's own."""
        return {"dataset": self.options.dataset} if self.options.dataset else {"workload": workload}

    def reach(self, plan: Plan, url: str | None = None) -> AbstractAsyncContextManager[Target]:
        return reach(url or self.options.url, plan)

    async def run(self, target: Target, plan: Plan, label: str) -> Measured:
        self.screen.title = label
        run = await measure(target, plan, self.screen)
        run.label = label
        run.settings = {"dialect": target.server_info.dialect.value, **settings_of(plan.options)}
        return Measured(run, summarise(run, plan.slo, plan.trim))


class Scenario(msgspec.Struct, frozen=True):
    """A named scenario. `shows` describes its purpose and promises."""

    name: str
    shows: str
    play: Callable[[ScenarioContext], Awaitable[Played]]


def whole_answers(*summaries: Summary) -> list[Promise]:
    """The promises of every scenario, over all its runs."""
    found = [summary.integrity for summary in summaries]
    asked = f"of {sum(whole.num_requests for whole in found):,} requests"
    lost, doubled = sum(whole.lost for whole in found), sum(whole.duplicated for whole in found)
    mixed = sum(whole.mixed for whole in found)
    said = "; ".join(line for whole in found for line in whole.examples[:2])[:400]
    return [
        Promise("No answer is lost.", lost == 0, f"{lost} {asked}" + (f": {said}" if lost else "")),
        Promise("No answer is duplicated.", doubled == 0, f"{doubled} {asked}"),
        Promise("No answer is mixed with another.", mixed == 0, f"{mixed} {asked}"),
    ]


def equal_answers(summary: Summary) -> Promise:
    """Greedy answers of one version are equal, for servers that compute in float32."""
    whole = summary.integrity
    found = f"{whole.num_unequal} of {whole.num_repeated} repeated prompts were answered differently"
    return Promise("Equal prompts get equal answers from one version.", whole.num_unequal == 0, found)


def answered_by_version(records: Sequence[Record]) -> Promise:
    """Every complete answer names its version."""
    ended = [record for record in records if record.finish_reason]
    unnamed = sum(not (record.segments or record.version) for record in ended)
    return Promise("Every answer names its model version.", unnamed == 0, f"{unnamed} of {len(ended)} do not")
