"""Users in conversations of several turns, with pauses between turns."""

from loadgen.results.summary import Measured
from loadgen.scenarios.context import Played, Scenario, ScenarioContext, whole_answers

RATE, SECONDS, TURNS, THINK = 1.0, 60, 3, "2s"
OBJECTIVES = ("ttft:1s", "tpot:100ms")


async def play(context: ScenarioContext) -> Played:
    plan = context.plan(
        rate=f"{context.options.rate or RATE:g}",
        duration=context.seconds(SECONDS),
        turns=TURNS,
        think=THINK,
        output_tokens="lognormal:80:0.6",
        chat_template=True,
        slo=OBJECTIVES,
        **context.prompts("chat"),
    )
    async with context.reach(plan) as target:
        run, summary = await context.run(target, plan, "chat")
    good = summary.throughput.good_share
    return Played(
        promises=whole_answers(summary), runs=[Measured(run, summary)], figures={"good_share": good}
    )


SCENARIO = Scenario(
    "chat",
    "Conversations of up to three turns that begin at random, with pauses to think. Shows how many answers "
    "meet ttft <= 1 s and 100 ms per token. Nothing is lost, duplicated or mixed.",
    play,
)
