"""With drafts an answer is the one without, token for token, whatever is drafted in whatever batch."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shard.drafts.drafter import Draft
from shard.messages import DrafterKind, NewSequence, Sampling, Step, Work
from shard.runner import ModelRunner
from tests.shard.driving import Generation, generate, kv_bytes, make_runner, prompts_of

DRAFTING = {"exit_mode": "speculative", "drafters": ["text"]}
LENGTHS = [3, 17, 40, 64, 9, 33, 5, 21, 2, 80, 13, 28, 30, 6, 50, 11]


class Scripted:
    """Drafts from known answers, wrong now and then, or at random."""

    name = DrafterKind.TEXT
    is_free = True

    def __init__(self, answers: dict[tuple[int, ...], list[int]], share_right: float, seed: int = 0):
        self.layers: tuple[int, ...] = ()
        self.answers = answers
        self.share_right = share_right
        self.draw = random.Random(seed)
        self.retired: list[int] = []
        self.num_cleared = 0
        self.known: dict[int, list[int]] = {}
        self.widths: set[tuple[int, ...]] = set()

    def propose(self, sequences, max_lengths):
        return [self._draft(s, length) for s, length in zip(sequences, max_lengths, strict=True)]

    def _draft(self, sequence, length):
        length = self.draw.randint(0, length)
        rest = self.answers[tuple(sequence.token_ids[: sequence.num_prompt_tokens])][
            sequence.num_new_tokens :
        ]
        ids = [id if self.draw.random() < self.share_right else (id + 1) % 200 for id in rest[:length]]
        return Draft(ids, [0] * len(ids))

    def note(self, passed):
        for one in passed:
            known = self.known.setdefault(one.sequence.id * 100 + one.sequence.attempt, [])
            assert one.start <= len(known) or one.sequence.num_cached_tokens
            known[one.start :] = one.token_ids
            self.widths.add(tuple(len(state) - one.num_tokens for state in one.states))

    def retire(self, sequence):
        self.retired.append(sequence.id)

    def clear(self, running):
        self.num_cleared += 1


def drafted_by(runner: ModelRunner, drafter: Scripted) -> ModelRunner:
    runner.draft_with([drafter], always=True)
    return runner


def test_drafters_hear_that_all_is_to_be_forgotten(tiny_model) -> None:
    drafter = Scripted({}, 1.0)
    runner = drafted_by(make_runner(tiny_model("llama"), **DRAFTING), drafter)
    runner.run(Step(1, []))
    assert drafter.num_cleared == 0
    runner.run(Step(2, [], clears_cache=True))
    assert drafter.num_cleared == 1


def drafting(folder: Path, **config) -> ModelRunner:
    return make_runner(folder, **DRAFTING, drafts_always=True, **config)


def samplings(count: int, temperature: float) -> list[Sampling]:
    return [
        Sampling(temperature=temperature, seed=i, top_p=0.9 if i % 3 else 1.0, presence_penalty=0.3 * (i % 2))
        for i in range(count)
    ]


def said(made: list[Generation]) -> list[tuple[list[int], str | None]]:
    return [(one.ids, one.finish) for one in made]


def answers_of(prompts: list[list[int]], made: list[Generation]) -> dict[tuple[int, ...], list[int]]:
    return {tuple(prompt): one.ids for prompt, one in zip(prompts, made, strict=True)}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_text_drafts_change_no_answer_of_any_family(every_tiny_model: Path, temperature: float):
    full, runner = make_runner(every_tiny_model), drafting(every_tiny_model)
    prompts = prompts_of(full.decoder.shape.vocab_size, LENGTHS)
    asked = samplings(len(prompts), temperature)
    expected = generate(full, prompts, 20, asked)
    for _ in range(2):  # the second time others have said it all before
        assert said(generate(runner, prompts, 20, asked)) == said(expected)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_chain_of_text_and_exit_changes_no_answer(tiny_model, temperature: float):
    folder = tiny_model("llama")
    prompts = prompts_of(259, LENGTHS)
    asked = samplings(len(prompts), temperature)
    expected = generate(make_runner(folder), prompts, 20, asked)
    chain = {"drafters": ["text", "exit"], "exit_layers": [1, 2], "exit_fallback": False}
    runner = make_runner(folder, exit_mode="speculative", drafts_always=True, **chain)
    for _ in range(2):
        assert said(generate(runner, prompts, 20, asked)) == said(expected)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_batch_size_changes_an_answer(tiny_model, count: int, temperature: float):
    folder = tiny_model("llama")
    full = make_runner(folder)
    prompts = prompts_of(full.decoder.shape.vocab_size, [LENGTHS[i % 16] for i in range(count)], seed=count)
    asked = samplings(count, temperature)
    expected = generate(full, prompts, 16, asked)
    drafter = Scripted(answers_of(prompts, expected), 0.7, seed=count)
    made = generate(
        drafted_by(make_runner(folder, **DRAFTING), drafter),
        prompts,
        16,
        asked,
    )
    assert said(made) == said(expected)
    assert sorted(drafter.retired) == list(range(count))


@given(
    share_right=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 1000),
    num_blocks=st.sampled_from([12, 14, 40]),
    chunk=st.sampled_from([5, 16, 512]),
    max_new_tokens=st.integers(1, 40),
    ends=st.booleans(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_acceptance_preemption_and_limit_leaves_answers_as_they_are(
    tiny_model, share_right, seed, num_blocks, chunk, max_new_tokens, ends
):
    folder = tiny_model("llama")
    full = make_runner(folder)
    prompts = prompts_of(full.decoder.shape.vocab_size, [30, 40, 50, 60], seed)
    asked = samplings(4, 0.7 * (seed % 2))
    free = generate(full, prompts, 40, asked)
    drafter = Scripted(answers_of(prompts, free), share_right, seed)
    drafter.layers = (1, 3)
    tight = {
        "max_total_tokens": 160,
        "kv_cache_bytes": kv_bytes(num_blocks, folder),
        "prefix_cache": seed % 3 == 0,
    }
    runner = drafted_by(make_runner(folder, **DRAFTING, **tight), drafter)
    if ends:
        for engine in (full, runner):
            engine.table.eos_token_ids = frozenset(one.ids[7] for one in free)
    expected = generate(full, prompts, max_new_tokens, asked, ignore_eos=not ends)
    made = generate(runner, prompts, max_new_tokens, asked, chunk, ignore_eos=not ends)
    assert said(made) == said(expected)
    assert drafter.widths <= {(0, 0)}
    for i, one in enumerate(expected):
        if not made[i].num_preemptions:
            known = drafter.known[100 * i]
            assert known[: len(prompts[i] + one.ids)] == (prompts[i] + one.ids)[: len(known)]


@pytest.mark.parametrize("mode", ["capped", "per_row"])
def test_in_other_modes_the_deepest_layer_verifies(tiny_model, mode: str):
    folder = tiny_model("llama")
    settings = {"exit_mode": mode, "exit_layers": [2], "exit_fallback": False}
    settings |= {"num_layers": 2} if mode == "capped" else {"exit_threshold": 1.0}
    plain = make_runner(folder, **settings)
    prompts = prompts_of(plain.decoder.shape.vocab_size, LENGTHS)
    for temperature in (0.0, 0.9):
        asked = samplings(len(prompts), temperature)
        expected = generate(plain, prompts, 16, asked)
        drafter = Scripted(answers_of(prompts, expected), 0.8)
        made = generate(drafted_by(make_runner(folder, **settings), drafter), prompts, 16, asked)
        assert [[(t.id, t.exit_layer) for t in one.tokens] for one in made] == [
            [(t.id, t.exit_layer) for t in one.tokens] for one in expected
        ]


def test_a_drafter_that_fails_is_switched_off_and_nothing_is_lost(tiny_model, caplog):
    folder = tiny_model("llama")
    full = make_runner(folder)
    prompts = prompts_of(full.decoder.shape.vocab_size, LENGTHS[:5])
    expected = generate(full, prompts, 16)
    drafter = Scripted({}, 1.0)  # knows no answer: KeyError
    runner = drafted_by(make_runner(folder, **DRAFTING), drafter)
    assert said(generate(runner, prompts, 16)) == said(expected)
    assert [record.message for record in caplog.records] == [
        "The drafter 'text' has failed and is switched off."
    ]


def test_right_drafts_make_steps_fewer_and_are_counted_by_place(tiny_model):
    folder = tiny_model("llama")
    prompts = prompts_of(259, [10])
    answer = generate(make_runner(folder), prompts, 60)
    drafter = Scripted(answers_of(prompts, answer), 1.0)
    runner = drafted_by(make_runner(folder, **DRAFTING), drafter)
    new = [NewSequence(0, 0, prompts[0], 10, 60, ignore_eos=True)]
    drafted, accepted, number = [0] * 8, [0] * 8, 0
    while number == 0 or len(runner.table):
        output = runner.run(Step(number, [Work(0, 0, 64)], [] if number else new))
        number += 1
        for count in output.exits.drafts.values():
            drafted = [a + b for a, b in zip(drafted, count.drafted, strict=True)]
            accepted = [a + b for a, b in zip(accepted, count.accepted, strict=True)]
    assert drafted == accepted
    assert sum(accepted) == 60 - number
    assert number < 20


def test_scores_and_logprobs_are_those_without_drafts(tiny_model):
    folder = tiny_model("llama")
    full = make_runner(folder)
    prompts = prompts_of(full.decoder.shape.vocab_size, LENGTHS[:4])
    asked = [Sampling(num_top_tokens=3, prompt_logprobs=i == 1) for i in range(4)]
    expected = generate(full, prompts, 16, asked)
    drafter = Scripted(answers_of(prompts, expected), 0.8)
    runner = drafted_by(make_runner(folder, **DRAFTING), drafter)
    made = generate(runner, prompts, 16, asked)
    for one, other in zip(made, expected, strict=True):
        assert [t.id for t in one.tokens] == [t.id for t in other.tokens]
        assert [t.logprob for t in one.tokens] == pytest.approx([t.logprob for t in other.tokens], abs=1e-4)
        assert [[id for id, _ in t.top] for t in one.tokens] == [
            [id for id, _ in t.top] for t in other.tokens
        ]
        assert len(one.prompt) == len(other.prompt)
