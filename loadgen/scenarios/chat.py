"""People who talk to the server, several turns each, and think in between."""

from loadgen.results.summary import Measured
from loadgen.scenarios.stage import Played, Scenario, Stage, whole_answers

RATE, SECONDS, TURNS, THINK = 1.0, 60, 3, "2s"
OBJECTIVES = ("ttft:1s", "tpot:100ms")


async def play(stage: Stage) -> Played:
    plan = stage.plan(
        rate=f"{stage.options.rate or RATE:g}",
        duration=stage.seconds(SECONDS),
        turns=TURNS,
        think=THINK,
        output_tokens="lognormal:80:0.6",
        chat_template=True,
        slo=OBJECTIVES,
        **stage.prompts("chat"),
    )
    async with stage.reach(plan) as target:
        run, summary = await stage.run(target, plan, "chat")
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
