"""The class of prompts changes during the load; checks that depth follows and nothing is lost."""

from loadgen.results.summary import Measured, Summary
from loadgen.scenarios.context import Played, Scenario, ScenarioContext, answered_by_version, whole_answers

STREAMS, REQUESTS = 8, 150  # per phase: requests between two reassessments
PHASES = ("chat", "code", "extract", "chat")


async def play(context: ScenarioContext) -> Played:
    per_phase = context.count(REQUESTS, least=8)
    plan = context.plan(
        concurrency=context.options.concurrency or STREAMS,
        drift=", ".join(f"{phase}@{per_phase}" for phase in PHASES),
        workload=",".join(dict.fromkeys(PHASES)),
        output_tokens="uniform:40:120",
        chat_template=True,
    )
    async with context.reach(plan) as target:
        run, summary = await context.run(target, plan, "drift")
    promises = whole_answers(summary)
    if target.server_info.kind == "helios":
        promises.append(answered_by_version(run.records))
    figures = {"swaps": len(summary.swaps), "mean_exit_layer": _depths(summary)}
    return Played(promises=promises, runs=[Measured(run, summary)], figures=figures)


def _depths(summary: Summary) -> dict[str, float]:
    if summary.exits is None:
        return {}
    return {group: depth.mean_layer for group, depth in summary.exits.by_group.items()}


SCENARIO = Scenario(
    "drift",
    "Chat, then code, then extraction, then chat again, 150 requests each. Shows exit depth by class and "
    "over time, and the swaps the server decides on. Nothing is lost, every answer names its version.",
    play,
)
