"""Cost of a mean request on a choice, independent of the current load.

Uses the cost fit of a choice's own steps, else one carried over from another choice:
prefill(p) + o x (a + b x depth), the idealized runtime of Narayanan et al. (2305.02440).
"""

import math

import msgspec

from router.catalog.profile import CandidateProfile
from router.catalog.repository import Choice
from router.policy.observation import Observation
from shard.messages import Mode
from telemetry.cost import CostFit
from telemetry.history import Row

_GUESS_ERROR = 0.3
_ERROR_OF_ONE = 0.25  # relative error of a fit to one request; falls with the root of their number
_UNMEASURED = CostFit(0.0, 1.0, 0.0, 0.0)  # one unit per layer: ranks depths, gives no times


class Cost(msgspec.Struct, frozen=True):
    """Cost of a mean request in the objective's unit: ms of a shard, ms of one request, or joules."""

    amount: float
    error: float  # relative error

    @property
    def least(self) -> float:
        """Lower bound of the cost, given its error."""
        return self.amount * (1 - self.error)

    @property
    def most(self) -> float:
        return self.amount * (1 + self.error)


class Run(msgspec.Struct, frozen=True):
    """Parameters of a mean request's run on a choice."""

    fit: CostFit
    num_measured: int  # requests on this choice that the fit rests on
    prompt_depth: float  # layers run for a prompt token
    depth: float  # mean layers run for an answer token
    batch_size: float  # sequences that fit into memory


def run_of(observation: Observation, choice: Choice) -> Run:
    """The run of a mean request on a choice, measured or estimated."""
    profile = observation.profiles[choice.candidate]
    row = _row_that_tells(observation, choice)
    num_measured = 0 if row is None or row.cost is None else max(1, row.num_requests)
    fit = row.cost if row is not None and row.cost is not None else _carried_over(observation, choice)
    batch_size = largest_batch(observation, profile, choice.depth)
    return Run(fit, num_measured, choice.depth, _mean_depth(choice, row), batch_size)


def cost_of(observation: Observation, choice: Choice) -> Cost:
    """Cost of a mean request for the repository's objective."""
    run = run_of(observation, choice)
    match observation.repository.objective:
        case "latency":
            amount = _alone_ms(observation, run)
        case "throughput":
            amount = _shared_ms(observation, run)
        case "energy":
            amount = _joules(observation, run, observation.row_of_any_prompts(choice))
    error = _ERROR_OF_ONE / math.sqrt(run.num_measured) if run.num_measured else _GUESS_ERROR
    return Cost(amount, error)


def step_ms(run: Run, batch_size: float) -> float:
    """Milliseconds of a step that makes one token for each of `batch_size` sequences."""
    fit = run.fit
    by_token = fit.token_ms + fit.token_layer_ms * run.depth
    return fit.step_ms + fit.layer_ms * run.depth + batch_size * by_token


def largest_batch(observation: Observation, profile: CandidateProfile, depth: int) -> float:
    """Number of mean requests that fit beside the weights, up to the largest batch allowed."""
    demand = observation.demand
    tokens = max(1.0, demand.prompt_tokens + demand.answer_tokens)
    room = observation.device.memory_bytes - profile.weight_bytes(depth)
    fitting = room / max(1.0, tokens * profile.kv_bytes * depth)
    return max(1.0, min(float(observation.device.max_batch_size), fitting))


def is_same(observation: Observation, choice: Choice, other: Choice) -> bool:
    """Both choices run all layers of the same weights without exits, so they differ in name only."""
    if choice == other:
        return True
    are_plain = (
        choice.depth == other.depth and _is_plain(observation, choice) and _is_plain(observation, other)
    )
    return are_plain and _share_weights(observation, choice.candidate, other.candidate)


def _row_that_tells(observation: Observation, choice: Choice) -> Row | None:
    """The choice's own history row, or an equivalent choice's if that rests on more data."""
    choices = [choice, *(Choice(name, choice.depth) for name in observation.profiles)]
    same = [alike for alike in choices if is_same(observation, alike, choice)]
    rows = [row for alike in same if (row := observation.row_of_any_prompts(alike)) is not None]
    return max(rows, key=lambda row: row.num_requests, default=None)


def _is_plain(observation: Observation, choice: Choice) -> bool:
    profile = observation.profiles[choice.candidate]
    return choice.depth == profile.num_layers and profile.candidate.mode == Mode.FULL


def _alone_ms(observation: Observation, run: Run) -> float:
    demand = observation.demand
    return run.fit.request_ms(
        round(demand.prompt_tokens), round(demand.answer_tokens), run.prompt_depth, run.depth
    )


def _shared_ms(observation: Observation, run: Run) -> float:
    """A request's share of shard time, in ms, in the largest batch: the inverse of throughput."""
    demand, fit = observation.demand, run.fit
    prompt_ms = demand.prompt_tokens * (fit.token_ms + fit.token_layer_ms * run.prompt_depth)
    return prompt_ms + demand.answer_tokens * step_ms(run, run.batch_size) / run.batch_size


def _joules(observation: Observation, run: Run, row: Row | None) -> float:
    """Joules per request as measured, else shard time times the power of a busy shard."""
    if row is not None and row.joules_per_token is not None:
        return row.joules_per_token * observation.demand.answer_tokens
    return _shared_ms(observation, run) / 1000 * (observation.device.watts or 1.0)


def _mean_depth(choice: Choice, row: Row | None) -> float:
    """Mean exit layer of tokens; all layers if the choice was not measured."""
    total = sum(row.exits.values()) if row is not None else 0
    if row is None or not total:
        return choice.depth
    return sum(layer * count for layer, count in row.exits.items()) / total


def _carried_over(observation: Observation, choice: Choice) -> CostFit:
    """The fit of the nearest measured choice: the same weights if possible, then the nearest depth."""
    measured = [
        row for row in observation.history if row.cost is not None and row.candidate in observation.profiles
    ]
    if not measured:
        return _scaled(_UNMEASURED, _layer_bytes(observation, choice.candidate))
    same = [row for row in measured if _share_weights(observation, row.candidate, choice.candidate)]
    nearest = min(same or measured, key=lambda row: (abs(row.depth - choice.depth), row.key))
    assert nearest.cost is not None
    if same:
        return nearest.cost
    return _scaled(
        nearest.cost,
        _layer_bytes(observation, choice.candidate) / _layer_bytes(observation, nearest.candidate),
    )


def _share_weights(observation: Observation, candidate: str, other: str) -> bool:
    models = [
        (observation.profiles[name].candidate.model, observation.profiles[name].candidate.revision)
        for name in (candidate, other)
    ]
    return models[0] == models[1]


def _layer_bytes(observation: Observation, candidate: str) -> float:
    return float(max(1, observation.profiles[candidate].layer_bytes))


def _scaled(fit: CostFit, by: float) -> CostFit:
    return CostFit(fit.step_ms * by, fit.layer_ms * by, fit.token_ms * by, fit.token_layer_ms * by)
