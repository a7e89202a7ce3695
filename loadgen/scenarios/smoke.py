"""A basic check of all dialects of a server."""

from loadgen.client.dialects import Dialect
from loadgen.client.server_info import Unusable
from loadgen.load.target import Target
from loadgen.results.summary import Measured
from loadgen.scenarios.context import Played, Promise, Scenario, ScenarioContext, whole_answers

REQUESTS, STREAMS, TOKENS = 12, 4, "24"


async def play(context: ScenarioContext) -> Played:
    found: list[Measured] = []
    promises: list[Promise] = []
    for dialect in Dialect:
        plan = context.plan(
            requests=REQUESTS, concurrency=STREAMS, output_tokens=TOKENS, dialect=dialect.value
        )
        try:
            async with context.reach(plan) as target:
                measured = await context.run(target, plan, dialect.value)
                promises += [await _health(target), await _bad_input(target)] if not found else []
        except Unusable as problem:
            promises += _judge_missing(dialect, context, str(problem))
            continue
        found.append(measured)
        promises += [_named(promise, dialect) for promise in whole_answers(measured.summary)]
    if not found:
        raise Unusable(f"{context.options.url} answers in none of the dialects")
    return Played(promises=promises, runs=found)


def _named(promise: Promise, dialect: Dialect) -> Promise:
    return Promise(f"{dialect}: {promise.says}", promise.is_kept, promise.found)


def _judge_missing(dialect: Dialect, context: ScenarioContext, problem: str) -> list[Promise]:
    """Promises about a failing dialect: a missing route is no defect, an error is."""
    if ": http error, 404" in problem or ": http error, 405" in problem:
        return []
    return [Promise(f"{dialect}: The server answers.", False, problem)]


async def _health(target: Target) -> Promise:
    health = await target.client.fetch("GET", "/health")
    return Promise("/health says that all is well.", health.is_ok, f"status {health.status}")


async def _bad_input(target: Target) -> Promise:
    """Invalid requests get a 4xx with a reason in JSON, and the server works afterwards."""
    answer = await target.client.fetch("POST", target.server_info.dialect.path, {"nothing": "useful"})
    goes_on = (await target.client.fetch("GET", "/health")).is_ok
    is_kept = 400 <= answer.status < 500 and isinstance(answer.json(), dict) and goes_on
    says = "Useless input is refused with a 4xx and JSON, and the server goes on."
    return Promise(says, is_kept, f"status {answer.status}")


SCENARIO = Scenario(
    "smoke",
    "Ten seconds: every dialect the server has answers in full, health is told, bad input is refused.",
    play,
)
