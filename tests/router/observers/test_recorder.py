"""The router's events as windows of telemetry."""

import pytest

from router.observers.recorder import Recorder, sample_of
from router.policy.history_rows import Circumstances, row_of
from router.scheduling.request import GenerationFailed, Request
from router.scheduling.step_tokens import StepTokens
from router.text.prompt import Prompt
from router.text.tokenizer import Piece
from shard.messages import (
    DraftCount,
    DrafterKind,
    ExitReport,
    FinishReason,
    OlderReport,
    Score,
    SequenceOutput,
    StepOutput,
    TokenOutput,
)
from telemetry.cost import StepSample
from telemetry.store import Store
from telemetry.window import Record, Window
from tests.router.fakes import FakeTokenizer, make_request, make_served_model, make_target

FULL = make_served_model(0, make_target("poet"))
CAPPED = make_served_model(1, make_target("poet"), depth=20)

DRAFTS = {DrafterKind.TEXT: DraftCount([3, 2], [2, 2])}


class Spelling(FakeTokenizer):
    """A tokenizer with three bytes per token; token 2 is special."""

    def piece(self, id: int) -> Piece:
        return Piece(b"abc", "abc", id == 2)


class Recorded:
    """A recorder, and what it hands over."""

    def __init__(self) -> None:
        self.store = Store(None, "poems", "one")
        self.records: list[Record] = []
        self.store.put = self.records.extend  # type: ignore[assignment, method-assign]
        self.num_waiting = 0
        self.observer = Recorder(self.store, num_waiting=lambda: self.num_waiting)
        self.observer.on_shard_ready(0, FULL)

    def windows(self) -> dict[tuple[int, str, int], Window]:
        self.records.clear()
        for gather in self.store.on_flush:
            gather()
        return {(record.shard, *record.key): record.window for record in self.records}

    def window(self) -> Window:
        (window,) = self.windows().values()
        return window


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def begin(id: int = 1, served_model: object = FULL, shard: int = 0, **more: object) -> Request:
    request = make_request(id, tokenizer=Spelling(), **more)
    request.start(shard, served_model, 0.0)
    return request


def give(recorded: Recorded, request: Request, layers: list[int], now: float, ends: bool = False) -> None:
    last, tokens = request.timeline.last_token, [TokenOutput(7, -1.0, layer) for layer in layers]
    request.put(tokens, FinishReason.LENGTH if ends else None, now)
    made = StepTokens(request.served_model)
    made.add(tokens, request.timeline.arrived, last, now)
    recorded.observer.on_tokens(request.shard, made)
    if ends:
        recorded.observer.on_finished(request)


def step(num_tokens: int = 1, **more: object) -> StepOutput:
    fields = {"num_free_blocks": 5, "num_sequences": 2, "step_ms": 20.0, "idle_ms": 5.0} | more
    return StepOutput(1, preempted=[], num_tokens=num_tokens, **{"outputs": []} | fields)


def test_tokens_are_counted_by_exit_layer_with_their_times(recorded: Recorded) -> None:
    request = begin()
    give(recorded, request, [20], 0.1)
    give(recorded, request, [30, 20], 0.3)
    window = recorded.window()
    assert window.tokens_by_exit == {20: 2, 30: 1}
    assert (window.ttft_ms.num, window.itl_ms.num) == (1, 2)
    assert window.ttft_ms.quantile(1) == pytest.approx(100, rel=0.02)
    assert window.itl_ms.quantile(1) == pytest.approx(100, rel=0.02)


def test_a_window_begins_anew_behind_each_flush(recorded: Recorded) -> None:
    request = begin()
    give(recorded, request, [30], 0.1)
    first = recorded.window()
    assert recorded.windows() == {}
    give(recorded, request, [30], 0.2, ends=True)
    second = recorded.window()
    assert (first.tokens, second.tokens) == (1, 1)
    assert second.ttft_ms.num == 0
    assert first.start <= first.end <= second.start <= second.end


def test_shards_candidates_and_depths_are_kept_apart(recorded: Recorded) -> None:
    bard = make_served_model(2, make_target("bard"))
    for id, (shard, served_model) in enumerate([(0, FULL), (0, CAPPED), (1, FULL), (0, bard)]):
        give(recorded, begin(id, served_model, shard), [20], 0.1)
    assert sorted(recorded.windows()) == [(0, "bard", 30), (0, "poet", 20), (0, "poet", 30), (1, "poet", 30)]
    assert {record.router for record in recorded.records} == {"one"}


def test_answers_failures_and_classes(recorded: Recorded) -> None:
    coder = begin(1, prompt=Prompt("Write a Python function to reverse a string."))
    give(recorded, coder, [10, 30], 0.1, ends=True)
    give(recorded, begin(2), [20], 0.1, ends=True)
    for id, error in ((3, GenerationFailed("gone")), (4, GenerationFailed("aborted", "cancelled", 499))):
        request = begin(id)
        request.fail(error, 1.0)
        recorded.observer.on_finished(request)
    window = recorded.window()
    assert (window.requests, window.failures) == (2, 1)
    assert {name: (use.requests, use.tokens, use.layers) for name, use in window.classes.items()} == {
        "code": (1, 2, 40),
        "chat": (1, 1, 20),
    }


def test_a_request_that_never_began_is_nobodys(recorded: Recorded) -> None:
    request = make_request(1)
    request.fail(GenerationFailed("too late"), 1.0)
    recorded.observer.on_finished(request)
    assert recorded.windows() == {}


def test_scores_count_for_who_wrote_the_answer(recorded: Recorded) -> None:
    request = begin(1, CAPPED)
    request.put([TokenOutput(5, -1.0, 20), TokenOutput(6, -1.0, 20)], None, 0.1)
    request.put([TokenOutput(2, -1.0, 20)], FinishReason.EOS, 0.2)
    recorded.observer.on_scored(request, [Score(5, -1.0), Score(9, -2.0), Score(2, -3.0)])
    answers = recorded.windows()[0, "poet", 20].answers
    assert (answers.num_answers, answers.tokens, answers.agreeing) == (1, 3, 2)
    assert answers.logprob == -6.0
    assert answers.num_bytes == 6  # but for the special token


def test_a_step_tells_time_batch_blocks_exits_and_joules(recorded: Recorded) -> None:
    exits = ExitReport(confidence_sum=1.5, num_confident=2, breaches=1, drafts=DRAFTS)
    recorded.observer.on_step(0, step(num_tokens=3, exits=exits, joules=2.0, num_blocks=50))
    recorded.observer.on_step(0, step(num_tokens=3, num_free_blocks=9))
    window = recorded.window()
    assert (window.num_steps, window.step_ms, window.idle_ms) == (2, 40.0, 10.0)
    assert (window.batched, window.computed_tokens) == (4, 6)
    assert (window.most_blocks, window.fewest_free_blocks) == (1000, 5)
    assert (window.confidence_sum, window.num_confident, window.breaches) == (1.5, 2, 1)
    assert (window.drafted, window.accepted, window.joules) == (5, 4, 2.0)
    assert window.cost.num_steps == 2


def test_tokens_are_metered_where_joules_are_told(recorded: Recorded) -> None:
    request = begin()
    recorded.observer.on_step(0, step(joules=0.0))
    give(recorded, request, [30, 30], 0.1)
    recorded.observer.on_step(0, step(joules=4.0))
    assert recorded.window().joules_per_token == 2.0
    recorded.observer.on_step(0, step())
    give(recorded, request, [30], 0.2)
    assert recorded.window().joules_per_token is None


def test_each_generation_of_a_step_has_its_part(recorded: Recorded) -> None:
    recorded.observer.on_shard_ready(0, CAPPED)
    older = OlderReport(0, num_sequences=3, num_tokens=3, ms=30.0, exits=ExitReport(breaches=2))
    recorded.observer.on_step(0, step(epoch=1, step_ms=10.0, older=[older], joules=8.0))
    windows = recorded.windows()
    assert (windows[0, "poet", 20].joules, windows[0, "poet", 30].joules) == (2.0, 6.0)
    assert (windows[0, "poet", 30].batched, windows[0, "poet", 30].breaches) == (3, 2)
    assert windows[0, "poet", 20].cost.num_steps == 0
    recorded.observer.on_step(0, step(num_tokens=0, epoch=1, num_sequences=0, older=[older]))
    windows = recorded.windows()
    assert (windows[0, "poet", 20].num_steps, windows[0, "poet", 30].num_steps) == (0, 1)


def test_a_new_life_of_a_shard_begins_with_nothing_known(recorded: Recorded) -> None:
    recorded.observer.on_shard_ready(0, CAPPED)
    recorded.observer.on_shard_death(0, "killed")
    recorded.observer.on_step(0, step(epoch=1))
    assert recorded.windows() == {}
    recorded.observer.on_shard_ready(0, make_served_model(0, make_target("bard")))
    recorded.observer.on_step(0, step())
    assert list(recorded.windows()) == [(0, "bard", 30)]


def test_what_a_step_says_of_costs() -> None:
    def tokens(*layers: int) -> SequenceOutput:
        return SequenceOutput(1, 0, 9, [TokenOutput(7, -1.0, layer) for layer in layers])

    decoding = step(num_tokens=2, outputs=[tokens(10), tokens(20)])
    assert sample_of(decoding, 30) == StepSample(20, 2, 30, 20.0)
    mixed = step(num_tokens=12, outputs=[tokens(10), tokens(20)])
    assert sample_of(mixed, 30) == StepSample(30, 12, 30 + 300, 20.0)
    drafted = step(num_tokens=2, outputs=[tokens(20, 20, 30), tokens(30)])  # 20 ms for two tokens of each
    assert sample_of(drafted, 30) == StepSample(30, 2, 50, 10.0)
    assert sample_of(step(num_tokens=9, outputs=drafted.outputs), 30) is None  # and a prompt's share of them
    assert sample_of(step(num_tokens=0), 30) is None
    assert sample_of(step(older=[OlderReport(0, 1)]), 30) is None


def test_forced_tokens_are_served_but_nobodys_choice(recorded: Recorded) -> None:
    request = begin()
    give(recorded, request, [20, 0, 0], 0.1)
    give(recorded, request, [30], 0.2, ends=True)
    recorded.observer.on_scored(request, [Score(7, -1.0), Score(7, -9.0), Score(8, -9.0), Score(8, -2.0)])
    window = recorded.window()
    assert window.tokens == 4
    assert (window.answers.tokens, window.answers.agreeing, window.answers.logprob) == (2, 1, -3.0)
    assert (window.classes["chat"].tokens, window.classes["chat"].layers) == (2, 50)
    assert request.mean_exit_layer == 25
    around = Circumstances(prompts="chat", now_s=0.0)
    assert row_of(FULL.choice, window, around).exits == {20: 1, 30: 1}


def test_a_cost_sample_counts_what_layers_were_run_for() -> None:
    drawn, forced = TokenOutput(7, -1.0, 20), TokenOutput(8, 0.0, 0)
    made = [SequenceOutput(1, 0, 9, [drawn, forced, forced]), SequenceOutput(2, 0, 9, [drawn])]
    assert sample_of(step(2, outputs=made), 30) == StepSample(20, 2, 40, 20.0)
    assert sample_of(step(4, outputs=made), 30) == StepSample(30, 4, 100, 20.0)
    assert sample_of(step(1, outputs=[SequenceOutput(1, 0, 9, [forced])]), 30) is None


def test_the_queue_is_summed_up_over_steps(recorded: Recorded) -> None:
    for recorded.num_waiting in (0, 4, 5):
        recorded.observer.on_step(0, step())
    recorded.observer.on_step(0, step(num_tokens=0))
    window = recorded.window()
    assert (window.waiting, window.num_steps) == (9, 3)
