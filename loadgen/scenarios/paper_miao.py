"""Miao et al. (arXiv 2407.20272): the gain of early exit over full depth, by number of streams.

One server gets requests in turns with an exit threshold, and with threshold 1, which never exits early.
"""

from collections.abc import Sequence

import msgspec

from loadgen.cli.units import number
from loadgen.client.server_info import Unusable
from loadgen.commands.compare import Rounds, Side, paired_rounds
from loadgen.load.single_request import ask_alone
from loadgen.load.target import Target
from loadgen.report.page_parts import Section, card, table
from loadgen.results.comparison import compare_rounds
from loadgen.results.stats import Interval
from loadgen.results.summary import Measured
from loadgen.scenarios.context import Played, Promise, Scenario, ScenarioContext, whole_answers

STREAMS, ROUNDS, TOKENS = (1, 8), 4, 64
PAPER_THROUGHPUT, PAPER_ITL = 1.25, 3.39  # the paper's best cases


class Gain(msgspec.Struct, frozen=True):
    """Gains of early exit over full depth, as factors of throughput and of time per token."""

    threshold: float
    streams: int
    throughput: Interval | None
    speed_per_token: Interval | None
    mean_exit_layer: float | None


async def play(context: ScenarioContext) -> Played:
    thresholds = [number(text, "threshold") for text in context.options.thresholds.split(",")]
    rounds = context.count(ROUNDS, least=2)
    gains: list[Gain] = []
    measured: list[Measured] = []
    for threshold in thresholds:
        for streams in (context.options.concurrency,) if context.options.concurrency else STREAMS:
            found = await _pair(context, threshold, streams, rounds)
            gains.append(_gain(threshold, streams, found))
            measured += found[0] + found[1]
    return Played(
        promises=[*whole_answers(*(summary for _, summary in measured)), _told(gains)],
        runs=[measured[-1]],
        figures={"gains": msgspec.to_builtins(gains)},
        sections=[Section("Beside the paper", card("Early exit over full depth", _table(gains)))],
        lines=_lines(gains),
    )


async def _pair(context: ScenarioContext, threshold: float, streams: int, rounds: int) -> Rounds:
    """The same requests with and without early exit, in turns."""
    plan = context.plan(
        concurrency=streams,
        requests=max(4, 3 * streams),
        output_tokens=str(TOKENS),
        eos="ignore",
        **context.prompts("chat,code"),
    )
    async with context.reach(plan) as target:
        if not await _takes_threshold(target):
            raise Unusable(f"{context.options.url} refuses exit_threshold: there is nothing to compare")
        sides = (
            Side("full depth", _asking(target, 1.0), plan),
            Side(f"threshold {threshold:g}", _asking(target, threshold), plan),
        )
        return await paired_rounds(*sides, rounds, context.screen)


def _asking(target: Target, threshold: float) -> Target:
    request_options = msgspec.structs.replace(target.request_options, exit_threshold=threshold)
    return msgspec.structs.replace(target, request_options=request_options)


async def _takes_threshold(target: Target) -> bool:
    return (await ask_alone(_asking(target, 1.0), "Hello", 2)).status == 200


def _gain(threshold: float, streams: int, rounds: Rounds) -> Gain:
    full, early = ([measured.summary for measured in side] for side in rounds)
    ratios = {ratio.measure: ratio.ratio for ratio in compare_rounds(full, early)}
    tpot = ratios.get("TPOT mean")
    layers = [summary.exits.total.mean_layer for summary in early if summary.exits is not None]
    mean = sum(layers) / len(layers) if layers else None
    return Gain(threshold, streams, ratios.get("output tokens/s"), tpot and _inverse(tpot), mean)


def _inverse(interval: Interval) -> Interval:
    low, high = interval.low, interval.high
    return Interval(1 / interval.estimate, high and 1 / high, low and 1 / low)


def _told(gains: Sequence[Gain]) -> Promise:
    unknown = sum(gain.mean_exit_layer is None for gain in gains)
    return Promise(
        "The server tells where tokens leave.", unknown == 0, f"{len(gains) - unknown} of {len(gains)}"
    )


def _cells(gain: Gain) -> list[str]:
    layer = "-" if gain.mean_exit_layer is None else f"{gain.mean_exit_layer:.1f}"
    return [
        f"{gain.threshold:g}",
        str(gain.streams),
        _show(gain.throughput),
        _show(gain.speed_per_token),
        layer,
    ]


def _show(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    if interval.low is None or interval.high is None:
        return f"{interval.estimate:.2f}x"
    return f"{interval.estimate:.2f}x ({interval.low:.2f} to {interval.high:.2f})"


HEADER = ("threshold", "streams", "throughput", "speed per token", "mean exit layer")


def _table(gains: Sequence[Gain]) -> str:
    paper = ["paper, at best", "", f"{PAPER_THROUGHPUT:g}x", f"{PAPER_ITL:g}x", ""]
    return table(HEADER, [*(_cells(gain) for gain in gains), paper])


def _lines(gains: Sequence[Gain]) -> list[str]:
    rows = [
        HEADER,
        *(_cells(gain) for gain in gains),
        ("paper", "", f"{PAPER_THROUGHPUT}x", f"{PAPER_ITL}x", ""),
    ]
    return ["", *("  ".join(f"{cell:>22}" for cell in row) for row in rows), ""]


SCENARIO = Scenario(
    "paper-miao",
    "Early exit against full depth on one server, in turns, at 1 and 8 streams: throughput and speed per "
    "token with intervals, beside the best cases of Miao et al. Nothing is lost, exit layers are told.",
    play,
)
