"""Models that change on a simulated shard: nobody is lost, all end where they began, memory suffices."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shard.clock import VirtualClock
from shard.memory import weight_bytes
from shard.messages import (
    Commit,
    NewSequence,
    Prepare,
    Prepared,
    ShardConfig,
    Step,
    SwapFailed,
    Work,
)
from shard.served_models import ServedModels, Unwanted
from shard.sim.sim_runner import CostModel, SimLoader
from tests.shard.many_models import Driver

BLOCK = 4  # tokens
LAYERS = 10
COSTS = CostModel(
    step_ms=0, token_ms=0, sequence_ms=0, context_token_ms=0, num_layers=LAYERS, kv_bytes_per_token=LAYERS,
    layer_bytes=100, base_bytes=500, max_total_tokens=40, vocab_size=2000, load_ms=100,
)  # fmt: skip
CONFIG = ShardConfig("m", "sim", block_size=BLOCK, kv_cache_bytes=20 * BLOCK * LAYERS)


def at_depth(depth: int, **more: object) -> ShardConfig:
    return msgspec.structs.replace(CONFIG, num_layers=depth, **more)


def costs_file(folder: Path, **more: object) -> str:
    path = folder / "costs.json"
    path.write_text(json.dumps(msgspec.to_builtins(COSTS) | more))
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> ShardConfig:
    return msgspec.structs.replace(CONFIG, cost_model=costs_file(tmp_path))


def driver(config: ShardConfig) -> Driver:
    clock = VirtualClock()
    return Driver(ServedModels(config, SimLoader(clock), clock))


def new(id: int, length: int = 4, max_new_tokens: int = 8) -> NewSequence:
    return NewSequence(id, 0, [300 + id] * length, length, max_new_tokens)


def alone(asked: NewSequence) -> list[int]:
    """What the simulated model answers, computed without it."""
    tokens = list(asked.token_ids)
    for _ in range(asked.max_new_tokens):
        tokens.append(COSTS.next_token(tokens[-1], len(tokens), asked.sampling.seed))
    return tokens[asked.num_prompt_tokens :]


def test_running_ones_keep_their_model_and_new_ones_take_the_new(config: ShardConfig) -> None:
    shard = driver(config)
    shard.ask(new(1))
    shard.step()
    shard.change(msgspec.structs.replace(config, num_layers=5))
    shard.ask(new(2))
    output = shard.step()
    layers = {made.id: [token.exit_layer for token in made.tokens] for made in output.outputs}
    assert layers == {1: [10], 2: [5]}
    assert (output.epoch, [report.epoch for report in output.older]) == (1, [0])
    assert (output.num_sequences, output.older[0].num_sequences) == (1, 1)
    shard.finish()
    assert [shard.asked[id].tokens for id in (1, 2)] == [alone(new(1)), alone(new(2))]
    assert shard.outputs[-1].older == []


def test_what_a_shallower_model_leaves_becomes_blocks(config: ShardConfig) -> None:
    shard = driver(config)
    assert shard.shard.ready().num_blocks == 20
    committed = shard.change(msgspec.structs.replace(config, num_layers=5))
    # 800 bytes of KV and 500 of weights no longer needed, in blocks of half the size
    assert committed.ready.num_blocks == (800 + 500) // 20
    assert shard.change(config).ready.num_blocks == 20


def test_the_newest_has_what_the_older_do_not_need_to_finish(config: ShardConfig) -> None:
    shard = driver(config)
    shard.ask(new(1), new(2, max_new_tokens=20))
    shard.step()
    committed = shard.change(msgspec.structs.replace(config, num_layers=5))
    older = 3 + 6  # blocks of 40 bytes: 12 and 24 tokens
    assert committed.ready.num_blocks == (800 - older * 40) // 20
    grown: list[int] = []
    while shard.shard.newest == 1 and any(not asked.is_over for asked in shard.asked.values()):
        grown.append(shard.step().num_blocks or 0)
    assert sorted(set(grown)) == [22, 28, 65]  # as the first ends, and the second with the weights


def test_a_model_that_is_asked_for_again_while_it_runs_is_not_there_twice(config: ShardConfig) -> None:
    shard = driver(config)
    shard.ask(new(1, max_new_tokens=20))
    shard.step()
    assert shard.change(msgspec.structs.replace(config, num_layers=5)).joined is None
    shard.ask(new(2, max_new_tokens=20))
    shard.step()
    committed = shard.change(msgspec.structs.replace(config, num_layers=LAYERS))  # as it is without
    assert (committed.epoch, committed.joined, committed.ready.depth) == (2, 0, 10)
    shard.ask(new(3))
    output = shard.step()
    assert (output.epoch, output.num_sequences) == (2, 2)
    assert [report.epoch for report in output.older] == [1]
    late = shard.shard.run(Step(99, [Work(9, 0, 4)], [new(9)]))  # it still says 0
    assert [made.id for made in late.outputs] == [9]
    again = shard.change(msgspec.structs.replace(config, num_layers=5))
    assert (again.joined, shard.shard.newest) == (1, 3)
    later = shard.shard.run(Step(100, [Work(10, 0, 4)], [new(10)]))  # and so does this, two changes later
    assert ([made.id for made in later.outputs], later.gone) == ([10], [])
    shard.shard.run(Step(101, [], drop=[(9, 0), (10, 0)]))
    shard.finish()
    assert [asked.tokens for asked in shard.asked.values()] == [
        alone(asked.new) for asked in shard.asked.values()
    ]


def test_another_batch_makes_another_model_of_the_same_weights(config: ShardConfig) -> None:
    shard = driver(config)
    shard.ask(new(1))
    shard.step()
    assert shard.change(msgspec.structs.replace(config, max_batch_tokens=64)).joined is None


def test_where_no_longest_sequence_fits_the_commit_fails_until_there_is_room(config: ShardConfig) -> None:
    shard = driver(config)
    shard.ask(*[new(id, 8, 28) for id in range(2)])
    for _ in range(25):
        shard.step()
    other = msgspec.structs.replace(config, model="other", num_layers=3)
    assert isinstance(shard.prepare(other), Prepared)
    refused = shard.commit()
    assert isinstance(refused, SwapFailed) and "the 2 that run" in refused.reason
    assert shard.step().epoch == 0
    shard.finish()
    assert shard.commit().ready.model == "other"
    assert [shard.asked[id].tokens for id in range(2)] == [alone(new(id, 8, 28)) for id in range(2)]


def test_who_comes_too_late_goes_back(config: ShardConfig) -> None:
    shard = driver(config).shard
    shard.prepare(Prepare(1, msgspec.structs.replace(config, num_layers=5)))
    shard.commit(Commit(1))
    late = new(7)
    output = shard.run(Step(1, [Work(7, 0, 4)], [late]))
    assert (output.gone, output.outputs, output.num_sequences) == ([(7, 0)], [], 0)
    again = msgspec.structs.replace(late, attempt=1, epoch=1)
    assert [made.id for made in shard.run(Step(2, [Work(7, 1, 4)], [again])).outputs] == [7]


def test_a_new_attempt_ends_the_one_before_on_any_generation(config: ShardConfig) -> None:
    shard = driver(config).shard
    shard.run(Step(1, [Work(7, 0, 4)], [new(7)]))
    shard.prepare(Prepare(1, msgspec.structs.replace(config, num_layers=5)))
    shard.commit(Commit(1))
    moved = msgspec.structs.replace(new(7), attempt=1, epoch=1)
    output = shard.run(Step(2, [Work(7, 0, 1), Work(7, 1, 4)], [moved]))
    assert [(made.id, made.attempt) for made in output.outputs] == [(7, 1)]
    assert (output.older, output.num_blocks) == ([], 65)


def test_drops_reach_older_generations(config: ShardConfig) -> None:
    shard = driver(config).shard
    shard.run(Step(1, [Work(7, 0, 4)], [new(7)]))
    shard.prepare(Prepare(1, msgspec.structs.replace(config, num_layers=5)))
    shard.commit(Commit(1))
    assert len(shard.run(Step(2, [])).older) == 1
    assert shard.run(Step(3, [], drop=[(7, 0)])).older == []


def test_one_model_is_prepared_at_a_time_and_a_discard_makes_way(config: ShardConfig) -> None:
    shard = driver(config).shard
    other = msgspec.structs.replace(config, model="other")
    assert isinstance(shard.commit(Commit(1)), SwapFailed)
    assert isinstance(shard.prepare(Prepare(1, other)), Prepared)
    refused = shard.prepare(Prepare(2, other))
    assert isinstance(refused, SwapFailed) and "Epoch 1" in refused.reason
    shard.discard(1)
    assert isinstance(shard.commit(Commit(1)), SwapFailed)
    assert isinstance(shard.prepare(Prepare(3, other)), Prepared)
    assert shard.commit(Commit(3)).ready.model == "other"


def test_loading_stops_when_nobody_wants_it_any_more(config: ShardConfig) -> None:
    class Impatient(VirtualClock):
        def pass_ms(self, ms: float) -> None:
            super().pass_ms(ms)
            shard.discard(1)

    clock = VirtualClock()
    shard = ServedModels(config, SimLoader(clock), clock)
    impatient = Impatient()
    shard.loader = SimLoader(impatient)
    with pytest.raises(Unwanted):
        shard.prepare(Prepare(1, msgspec.structs.replace(config, model="other")))
    assert impatient.now_ms() < COSTS.load_ms
    with pytest.raises(Unwanted):
        shard.prepare(Prepare(1, config))
    assert isinstance(shard.prepare(Prepare(2, config)), Prepared)


def test_layers_that_are_there_are_not_loaded_again(config: ShardConfig) -> None:
    clock = VirtualClock()
    shard = Driver(ServedModels(msgspec.structs.replace(config, num_layers=8), SimLoader(clock), clock))
    times = [shard.change(msgspec.structs.replace(config, num_layers=n)) and shard.shard.ready().load_ms
             for n in (4, 8, 10)]  # fmt: skip
    assert times == pytest.approx([0, 40, 20])


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"fails_on_load": "tensor 'x' is missing"}, "tensor 'x'"), ({"base_bytes": 10**6}, "hold no block")],
)
def test_a_model_that_cannot_be_loaded_leaves_the_old_one(
    config: ShardConfig, tmp_path: Path, more: dict[str, object], reason: str
) -> None:
    shard = driver(config)
    shard.ask(new(1))
    shard.step()
    (tmp_path / "bad").mkdir()
    bad = msgspec.structs.replace(config, model="bad", cost_model=costs_file(tmp_path / "bad", **more))
    with pytest.raises((OSError, MemoryError), match=reason):
        shard.prepare(bad)
    shard.finish()
    assert shard.asked[1].tokens == alone(new(1))
    assert shard.change(msgspec.structs.replace(config, num_layers=5)).ready.depth == 5


class Changes(RuleBasedStateMachine):
    """Prompts, steps and changes of model in any order, in a memory that is tight, or less so."""

    @initialize(num_blocks=st.sampled_from([20, 100]))
    def start(self, num_blocks: int) -> None:
        kv_bytes = num_blocks * BLOCK * LAYERS
        self.total_bytes = 500 + LAYERS * 100 + kv_bytes
        self.shard = driver(msgspec.structs.replace(CONFIG, cost_model=COSTS_FILE, kv_cache_bytes=kv_bytes))
        self.is_prepared = False

    @rule(prompts=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 28)), min_size=1, max_size=5))
    def ask(self, prompts: list[tuple[int, int]]) -> None:
        first = len(self.shard.asked)
        self.shard.ask(*[new(first + i, *prompt) for i, prompt in enumerate(prompts)])

    @rule(count=st.integers(1, 12), max_batch_size=st.sampled_from([2, 4, 8]))
    def steps(self, count: int, max_batch_size: int) -> None:
        for _ in range(count):
            self.shard.step(max_batch_size)
            self.check()

    @precondition(lambda self: not self.is_prepared)
    @rule(model=st.sampled_from(["m", "other"]), depth=st.sampled_from([2, 5, 10]))
    def prepare(self, model: str, depth: int) -> None:
        config = at_depth(depth, model=model, cost_model=COSTS_FILE)
        assert isinstance(self.shard.prepare(config), Prepared)
        self.is_prepared = True

    @precondition(lambda self: self.is_prepared)
    @rule()
    def commit(self) -> None:
        self.is_prepared = isinstance(self.shard.commit(), SwapFailed)

    @precondition(lambda self: not self.is_prepared)
    @rule(model=st.sampled_from(["m", "other"]), depth=st.sampled_from([2, 5, 10]), num_new=st.integers(0, 3))
    def change(self, model: str, depth: int, num_new: int) -> None:
        """All at once, and somebody begins on it."""
        self.prepare(model, depth)
        self.commit()
        first = len(self.shard.asked)
        self.shard.ask(*[new(first + i) for i in range(num_new)])
        self.shard.step()

    @precondition(lambda self: self.is_prepared)
    @rule()
    def discard(self) -> None:
        self.shard.shard.discard(self.shard.epoch)
        self.is_prepared = False

    @invariant()
    def check(self) -> None:
        """Weights and blocks of all together stay within what the first model took; nobody idles in vain."""
        living = self.shard.shard.living
        blocks = sum(engine.table.pool.num_blocks * engine.block_bytes for engine in living.values())
        assert weight_bytes(engine.weights for engine in living.values()) + blocks <= self.total_bytes
        for epoch, engine in living.items():
            pool = engine.table.pool
            assert 0 <= pool.num_taken <= pool.num_blocks
            assert len(engine.table) or epoch == self.shard.shard.newest or not self.shard.outputs
        newest = living[self.shard.shard.newest]
        assert newest.table.pool.num_blocks * BLOCK >= newest.table.max_total_tokens

    def teardown(self) -> None:
        """Everybody ends, with the answer that they would have got alone."""
        self.shard.finish()
        for asked in self.shard.asked.values():
            assert asked.tokens == alone(asked.new)


@pytest.fixture(scope="module", autouse=True)
def written_costs(tmp_path_factory: pytest.TempPathFactory) -> None:
    global COSTS_FILE
    COSTS_FILE = costs_file(tmp_path_factory.mktemp("costs"))


COSTS_FILE = ""
TestChanges = Changes.TestCase
TestChanges.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
