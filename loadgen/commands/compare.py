"""`helios bench compare`: the same load on two servers in turns, with a statistical verdict."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from loadgen.cli.units import BadQuantity, share
from loadgen.load.live import choose_view
from loadgen.load.measure import Screen, measure
from loadgen.load.options import CompareOptions
from loadgen.load.plan import Plan, plan_of, settings_of
from loadgen.load.single_request import ask_alone
from loadgen.load.target import Target, reach
from loadgen.report.page import page_of
from loadgen.report.page_parts import Section, card, number, table
from loadgen.report.tables import compact_json
from loadgen.results.comparison import Answers, Ratio, Verdict, compare_answers, compare_rounds
from loadgen.results.health import Verdict as Health
from loadgen.results.summary import Measured, Summary, summarise

ROUND_DURATION = "15s"


async def compare(options: CompareOptions, console: Console) -> int:
    """Compare and report; returns 1 if answers differ that must be equal. Raises as `serve` does."""
    plan_a, plan_b = _plans(options)
    names = _names(options)
    screen = Screen(choose_view(options.quiet), "compare")
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(reach(options.a, plan_a))
        b = await stack.enter_async_context(reach(options.b, plan_b))
        answers = await _same_answers(a, b, options, plan_a) if options.same_answers else None
        try:
            sides = (Side(names[0], a, plan_a), Side(names[1], b, plan_b))
            rounds = await paired_rounds(*sides, options.rounds, screen)
        finally:
            screen.view.close()
    rounds_a, rounds_b = ([measured.summary for measured in side] for side in rounds)
    ratios = compare_rounds(rounds_a, rounds_b)
    if not options.quiet:
        _print(ratios, answers, names, console)
        _print_remarks(rounds_a + rounds_b, console)
    if options.out:
        _write(Path(options.out), (rounds_a, rounds_b), ratios, answers)
    is_broken = answers is not None and answers.share < share(options.same_answers or "0%")
    print(compact_json(_line(names, ratios, answers, rounds_a + rounds_b)), flush=True)
    return 1 if is_broken else 0


def _plans(options: CompareOptions) -> tuple[Plan, Plan]:
    if not options.a or not options.b:
        raise BadQuantity("compare needs two servers: --a URL --b URL")
    if options.rounds < 1:
        raise BadQuantity(f"--rounds must be at least 1, not {options.rounds}")
    if options.requests is None and options.duration is None:
        options = msgspec.structs.replace(options, duration=ROUND_DURATION)
    changes = {"dialect": options.dialect_b, "model": options.model_b, "extra_body": options.extra_body_b}
    options_b = msgspec.structs.replace(options, **{k: v for k, v in changes.items() if v is not None})
    return plan_of(options), plan_of(options_b)


def _names(options: CompareOptions) -> tuple[str, str]:
    first, comma, second = options.names.partition(",")
    if not comma or not first or not second:
        raise BadQuantity(f"--names needs two names with a comma between, not {options.names!r}")
    return first.strip(), second.strip()


class Side(msgspec.Struct, frozen=True):
    """One of two compared sides: a server, or one way of asking it. `turn` is entered for its rounds."""

    name: str
    target: Target
    plan: Plan
    turn: Callable[[], AbstractContextManager[None]] = nullcontext


Rounds = tuple[list[Measured], list[Measured]]


async def paired_rounds(a: Side, b: Side, num_rounds: int, screen: Screen) -> Rounds:
    """Yields rounds of both sides in turns. Both get equal requests in a round, and new ones in the next."""
    found: Rounds = ([], [])
    for index in range(num_rounds):
        for side, measured in zip((a, b), found, strict=True):
            screen.title = f"round {index + 1} of {num_rounds}: {side.name}"
            with side.turn():
                run = await measure(side.target, side.plan, screen, seed_offset=index)
            run.label = f"{side.name}, round {index + 1}"
            run.settings = settings_of(side.plan.options)
            summary = summarise(run, side.plan.slo, side.plan.trim)
            measured.append(Measured(run, summary))
    return found


async def _same_answers(a: Target, b: Target, options: CompareOptions, plan: Plan) -> Answers:
    """Send the same prompts to both, one at a time and greedily."""
    workload = plan.workload(a.filler, seed_offset=-1)
    jobs = [workload.draw(number, 0.0) for number in range(options.same_prompts)]
    prompts = [job.turns[0] for job in jobs]
    max_tokens = jobs[0].max_tokens[0]
    texts = [[(await ask_alone(target, text, max_tokens)).text for text in prompts] for target in (a, b)]
    return compare_answers(prompts, *texts)


def _print(
    ratios: Sequence[Ratio], answers: Answers | None, names: tuple[str, str], console: Console
) -> None:
    shown = Table(box=None, header_style="dim", padding=(0, 1))
    for name in ("", *names, f"{names[1]} / {names[0]}", "95% interval", ""):
        shown.add_column(name, justify="right" if name else "left", no_wrap=True)
    colours = {Verdict.BETTER: "green", Verdict.WORSE: "red", Verdict.OPEN: "dim"}
    for ratio in ratios:
        says = f"[{colours[ratio.verdict]}]{_says(ratio, names[1])}[/]"
        estimate = f"[bold]{ratio.ratio.estimate:.3f}[/]"
        shown.add_row(ratio.measure, *values_of(ratio), estimate, interval_of(ratio), says)
    console.print(shown)
    if answers is not None:
        console.print(f"Equal greedy answers: {answers.num_equal} of {answers.num_prompts}.")
        for line in answers.differences:
            console.print(f"  {line}", style="yellow", markup=False)


def _print_remarks(rounds: Sequence[Summary], console: Console) -> None:
    for remark in client_remarks(rounds):
        console.print(remark, style="yellow", soft_wrap=True)
    for summary in rounds:
        whole = summary.integrity
        if not whole.is_whole:
            broken = f"lost {whole.lost}, duplicated {whole.duplicated}, mixed {whole.mixed}"
            console.print(f"{summary.label}: {broken}: {whole.examples[:2]}", style="red", markup=False)


def client_remarks(rounds: Sequence[Summary]) -> list[str]:
    """What the load generator says of its own lag in the worst round, if that was too large."""
    worst = max(rounds, key=lambda summary: summary.client.lag_p99_ms)
    is_fine = worst.client.verdict is Health.FINE
    return [] if is_fine else [f"{worst.label}, the worst in this: {worst.client.says}"]


def values_of(ratio: Ratio) -> tuple[str, str]:
    """Means of both sides with their unit."""
    unit = f" {ratio.unit}" if ratio.unit else ""
    return f"{number(ratio.a)}{unit}", f"{number(ratio.b)}{unit}"


def interval_of(ratio: Ratio) -> str:
    """The 95% interval in words."""
    found = ratio.ratio
    return "needs more rounds" if found.low is None else f"{found.low:.3f} to {found.high:.3f}"


def _says(ratio: Ratio, name: str) -> str:
    return "no verdict" if ratio.verdict is Verdict.OPEN else f"{name} is {ratio.verdict}"


def _write(
    out: Path, rounds: tuple[list[Summary], list[Summary]], ratios: Sequence[Ratio], answers: Answers | None
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    names = tuple(side[0].label.split(",")[0] for side in rounds)
    figures = {"ratios": ratios, "answers": answers, "rounds": rounds}
    plain = msgspec.json.encode(msgspec.to_builtins(figures, str_keys=True))
    (out / "comparison.json").write_bytes(msgspec.json.format(plain, indent=2))
    rows = [
        [
            ratio.measure,
            *values_of(ratio),
            f"<b>{ratio.ratio.estimate:.3f}</b>",
            interval_of(ratio),
            _says(ratio, names[1]),
        ]
        for ratio in ratios
    ]
    header = ("", *names, f"{names[1]} / {names[0]}", "95% interval", "verdict")
    note = f"{len(rounds[0])} pairs of rounds in turns; a verdict only where a 99% interval allows one."
    section = Section("Comparison", card("Ratios over paired rounds", table(header, rows, (5,)), note))
    page = page_of([rounds[0][-1], rounds[1][-1]], title=f"{names[1]} against {names[0]}", sections=[section])
    (out / "report.html").write_text(page)


def _line(
    names: tuple[str, str], ratios: Sequence[Ratio], answers: Answers | None, rounds: Sequence[Summary]
) -> dict[str, Any]:
    line: dict[str, Any] = {"benchmark": "compare", "a": names[0], "b": names[1]}
    line["ratios"] = {ratio.measure: plain_ratio(ratio) for ratio in ratios}
    if answers is not None:
        line["same_answers"] = {"equal": answers.num_equal, "of": answers.num_prompts}
    worst = max((summary.client.lag_p99_ms for summary in rounds), default=0.0)
    return {**line, "failures": sum(summary.integrity.lost for summary in rounds), "client_lag_p99_ms": worst}


def plain_ratio(ratio: Ratio) -> dict[str, Any]:
    """A ratio for a line of JSON."""
    found = ratio.ratio
    plain = {"a": ratio.a, "b": ratio.b, "ratio": found.estimate, "low": found.low, "high": found.high}
    return {**plain, "b_is": ratio.verdict}
