"""`helios bench scenario NAME`: runs a scenario, and checks and reports its promises."""

import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path

import msgspec
from rich.console import Console

from loadgen.cli.units import BadQuantity
from loadgen.load.live import choose_view
from loadgen.load.measure import Screen
from loadgen.load.options import ScenarioOptions
from loadgen.report.export import export
from loadgen.report.page import page_of
from loadgen.report.page_parts import Section, card, table
from loadgen.report.tables import compact_json, print_summary
from loadgen.scenarios import (
    chat,
    disconnects,
    drift,
    overload,
    paper_miao,
    shared_prefix,
    smoke,
    soak,
    swap_under_load,
)
from loadgen.scenarios.context import Played, Promise, Scenario, ScenarioContext

SCENARIOS = (
    smoke.SCENARIO,
    chat.SCENARIO,
    drift.SCENARIO,
    swap_under_load.SCENARIO,
    overload.SCENARIO,
    disconnects.SCENARIO,
    soak.SCENARIO,
    shared_prefix.SCENARIO,
    paper_miao.SCENARIO,
)


def about() -> str:
    """The help text: all scenarios and what they show."""
    lines = ["Plays a named scenario; the exit code is 1 if one of its promises is broken.", ""]
    for scenario in SCENARIOS:
        words = textwrap.wrap(scenario.shows, 78)
        lines += [f"  {scenario.name:<17}{words[0]}", *(f"{'':19}{line}" for line in words[1:])]
    return "\n".join(lines)


async def play(options: ScenarioOptions, console: Console) -> int:
    """Run a scenario and report. Raises as `serve` does."""
    if options.name == "list":
        console.print(about(), highlight=False, markup=False, soft_wrap=True)
        return 0
    if options.scale <= 0:
        raise BadQuantity(f"--scale must be above 0, not {options.scale}")
    scenario = _find(options.name)
    screen = Screen(choose_view(options.quiet), scenario.name)
    try:
        played = await scenario.play(ScenarioContext(options, screen))
    finally:
        screen.view.close()
    if not options.quiet:
        _print(scenario, played, console)
    if options.out:
        _write(Path(options.out), scenario, played)
    print(compact_json(_line(scenario, played)), flush=True)
    return 0 if all(promise.is_kept for promise in played.promises) else 1


def _find(name: str) -> Scenario:
    found = next((scenario for scenario in SCENARIOS if scenario.name == name), None)
    if found is None:
        raise BadQuantity(f"no scenario {name!r}; there are {', '.join(s.name for s in SCENARIOS)}")
    return found


def _print(scenario: Scenario, played: Played, console: Console) -> None:
    for _, summary in played.runs:
        print_summary(summary, console)
    for line in played.lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"[bold]{scenario.name}[/]: {scenario.shows}", highlight=False)
    for promise in played.promises:
        sign, style = ("✓", "green") if promise.is_kept else ("✗", "bold red")
        console.print(
            f"[{style}]{sign}[/] {promise.says} [dim]{_plain(promise.found)}[/]",
            highlight=False,
            soft_wrap=True,
        )


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def _write(out: Path, scenario: Scenario, played: Played) -> None:
    sections = [_promise_section(played.promises), *played.sections]
    title = f"Scenario {scenario.name}"
    page = page_of([summary for _, summary in played.runs], title, scenario.shows, sections)
    run, summary = played.runs[0]
    export(out, summary, run, page)
    line = msgspec.json.encode(msgspec.to_builtins(_line(scenario, played), str_keys=True))
    (out / "scenario.json").write_bytes(msgspec.json.format(line, indent=2))


def _promise_section(promises: Sequence[Promise]) -> Section:
    rows = [
        [
            f'<span class="{"kept" if p.is_kept else "broken"}">{"kept" if p.is_kept else "broken"}</span>',
            escape(p.says),
            escape(p.found),
        ]
        for p in promises
    ]
    return Section("Promises", card("What must hold", table(("", "promise", "found"), rows, (1, 2))))


def _line(scenario: Scenario, played: Played) -> dict[str, object]:
    return {
        "benchmark": "scenario",
        "scenario": scenario.name,
        "kept": all(promise.is_kept for promise in played.promises),
        "broken": [promise.says for promise in played.promises if not promise.is_kept],
        "promises": msgspec.to_builtins(played.promises),
        **played.figures,
    }
