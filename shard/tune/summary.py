"""The final report of tuning: accuracy and confidence of each exit, and what it must save to pay."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from shard.tune.costs import Costs
from shard.tune.draft_training import UNROLLED
from shard.tune.drafter import DrafterResult
from shard.tune.evaluation import THRESHOLDS, Curve, Point
from shard.tune.session import Made


def print_summary(console: Console, made: Made, costs: Costs) -> None:
    """Print tables of exits and probes, then one sentence for each exit on what its costs imply."""
    result = made.result
    console.print(f"[bold]{made.ask.out}[/bold]")
    tokens = sum(result.num_training_tokens.values())
    console.print(f"{result.num_steps} steps on {tokens} answer tokens; what follows was held out.")
    console.print(_table("exit", "leaves at top probability of at least", result.exits))
    console.print(_table("probe", "asked where the probe says at least", result.probes))
    for number, layer in enumerate(result.exits):
        console.print(_break_even(layer, costs.break_even(number)))


def print_acceptance(console: Console, result: DrafterResult) -> None:
    """Print how many tokens of a draft full depth accepts."""
    tokens = sum(result.num_training_tokens.values())
    made = f"{result.num_steps} steps on {tokens} answer tokens in {result.seconds:.0f} s"
    console.print(f"{made}; what follows was held out.")
    places = ["first", "second", "third", "fourth", "fifth", "sixth"][:UNROLLED]
    table = Table("text", "drafts", *places, "tokens a draft")
    table.caption = "share of a draft's tokens that full depth accepts, given those before"
    for text, found in result.acceptance.items():
        shares = (f"{share:.3f}" for share in found.by_token)
        table.add_row(text, str(found.num_drafts), *shares, f"{found.accepted:.2f}")
    console.print(table)


def _break_even(layer: int, coverage: float) -> str:
    if coverage >= 1:
        return f"Exit {layer} cannot pay: its head costs more than what leaving there saves."
    return (
        f"Exit {layer} pays where more than {coverage:.0%} of those who are asked leave; "
        "a probe that asks only some lowers what that is in all."
    )


def _table(what: str, caption: str, curves: dict[int, dict[str, Curve]]) -> Table:
    table = Table(what, "text", "tokens", "agreement", *(f">= {threshold:g}" for threshold in THRESHOLDS))
    table.caption = f"share that {caption} ..., and agreement there"
    for layer, by_text in curves.items():
        for row in _rows(layer, by_text):
            table.add_row(*row)
    return table


def _rows(layer: int, by_text: dict[str, Curve]) -> Iterator[tuple[str, ...]]:
    for text, curve in by_text.items():
        agreement = f"{curve.agreement:.3f}"
        yield (str(layer), text, str(curve.num_tokens), agreement, *map(_cell, curve.points))


def _cell(point: Point) -> str:
    return "-" if point.agreement is None else f"{point.coverage:.0%} {point.agreement:.3f}"
