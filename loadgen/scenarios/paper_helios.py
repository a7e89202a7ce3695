"""HELIOS's own experiment seen from a client: requests whose kind changes, and what adapting gains.

The paper (arXiv 2504.10724) sent 1,087 requests and saw six swaps. Its baseline is a static early-exit
model; here it is another server (`--baseline`), loaded in turns with this one.
"""

from collections.abc import Sequence

from loadgen.compare import Side, paired_rounds
from loadgen.report.page_parts import Section, card, table
from loadgen.results.comparison import Ratio, compare_rounds
from loadgen.results.summary import Measured, Summary
from loadgen.scenarios.stage import Played, Scenario, Stage, answered_by_version, whole_answers

REQUESTS, STREAMS, ROUNDS = 1087, 16, 4
PHASES = ("chat", "code", "extract", "story", "chat")

# What the paper gives, against its static early-exit baseline.
PAPER = {
    "throughput": 1.48,
    "response time": 1.39,
    "share of the first exit": 0.91,
    "share of full depth": 0.074,
}
PAPER_SWAPS = 6


async def play(stage: Stage) -> Played:
    requests = stage.count(REQUESTS, least=20)
    plan = stage.plan(
        concurrency=stage.options.concurrency or STREAMS,
        output_tokens="uniform:40:160",
        chat_template=True,
        **_content(stage, requests),
    )
    async with stage.reach(plan) as target:
        run, summary = await stage.run(target, plan, "paper-helios")
    ratios = await _against_baseline(stage) if stage.options.baseline else []
    rows = _rows(summary, ratios)
    promises = whole_answers(summary)
    if summary.peer.kind == "helios":
        promises.append(answered_by_version(run.records))
    return Played(
        promises=promises,
        runs=[Measured(run, summary)],
        figures={name: found for name, found, _ in rows},
        sections=[Section("Beside the paper", card("HELIOS, from outside", _table(rows)))],
        lines=[
            "",
            *(f"{name:28} {_show(found):>10}   paper {_show(paper)}" for name, found, paper in rows),
            "",
        ],
    )


def _content(stage: Stage, requests: int) -> dict[str, object]:
    """Phases of the shipped classes; a dataset's classes one after another, so that they shift likewise."""
    if stage.options.dataset:
        groups = list(
            dict.fromkeys(prompt.group for prompt in stage.plan(dataset=stage.options.dataset).prompts)
        )
        return {"dataset": stage.options.dataset, "drift": _phases(groups, requests)}
    return {"workload": ",".join(dict.fromkeys(PHASES)), "drift": _phases(PHASES, requests)}


def _phases(groups: Sequence[str], requests: int) -> str:
    each, rest = divmod(max(requests, len(groups)), len(groups))
    return ", ".join(f"{group}@{each + (index < rest)}" for index, group in enumerate(groups))


async def _against_baseline(stage: Stage) -> list[Ratio]:
    plan = stage.plan(
        concurrency=stage.options.concurrency or STREAMS,
        requests=stage.count(REQUESTS // (2 * ROUNDS), least=12),
        output_tokens="uniform:40:160",
        chat_template=True,
        **stage.prompts("chat,code,extract,story"),
    )
    async with stage.reach(plan, stage.options.baseline) as static, stage.reach(plan) as adaptive:
        sides = (Side("baseline", static, plan), Side("adaptive", adaptive, plan))
        rounds = await paired_rounds(*sides, stage.count(ROUNDS, least=2), stage.screen)
    static_rounds, adaptive_rounds = ([measured.summary for measured in side] for side in rounds)
    return compare_rounds(static_rounds, adaptive_rounds)


Row = tuple[str, float | None, float | None]


def _rows(summary: Summary, ratios: Sequence[Ratio]) -> list[Row]:
    """Name, found, the paper's figure."""
    by_name = {ratio.measure: ratio.ratio.estimate for ratio in ratios}
    slower = by_name.get("E2E mean")
    shares = summary.exits.total.share_by_layer if summary.exits else {}
    first, last = (shares.get(min(shares)), shares.get(max(shares))) if len(shares) > 1 else (None, None)
    return [
        ("throughput gain", by_name.get("output tokens/s"), PAPER["throughput"]),
        ("response time gain", 1 / slower if slower else None, PAPER["response time"]),
        ("share of the first exit", first, PAPER["share of the first exit"]),
        ("share of the last exit", last, PAPER["share of full depth"]),
        ("swaps", float(len(summary.swaps)), float(PAPER_SWAPS)),
    ]


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _table(rows: Sequence[Row]) -> str:
    return table(("", "here", "paper"), [[name, _show(found), _show(paper)] for name, found, paper in rows])


SCENARIO = Scenario(
    "paper-helios",
    "The 1,087 shifting requests of the HELIOS paper: exit shares and swaps beside the paper's own, and with "
    "--baseline URL the gain in throughput and response time over a static server. Nothing is lost.",
    play,
)
