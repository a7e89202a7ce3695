"""The engine's draft head guesses what the one in training does, and changes no answer."""

from pathlib import Path

import pytest
import torch

from shard.drafts.drafter import NUM_GRADES, Draft
from shard.drafts.head import HeadDrafter
from shard.engine.sequence_table import lay_out
from shard.engine.step_inputs import BatchMaker
from shard.messages import NewSequence, Sampling
from shard.runner import ModelRunner
from shard.tune.draft_head import DraftHead
from shard.tune.evaluation import logits_of
from tests.shard.drafter_files import backbone, random_head, random_vocabulary, write_plain
from tests.shard.driving import generate, make_runner, prompts_of

LENGTHS = [3, 17, 40, 64, 9, 33, 5, 21]
LENGTH = 4  # of drafts


class Recorded:
    """A head's drafts, in which right guesses are put before some are verified."""

    def __init__(self, drafter: HeadDrafter, answers: dict[tuple[int, ...], list[int]]):
        self.drafter = drafter
        self.answers = answers
        self.made: list[tuple[list[int], Draft]] = []
        self.name, self.layers, self.is_free = drafter.name, drafter.layers, False
        self.most_bytes = 0

    def propose(self, sequences, max_lengths):
        lengths = [min(LENGTH, most) for most in max_lengths]
        before = [[*sequence.token_ids] for sequence in sequences]
        drafts = self.drafter.propose(sequences, lengths)
        assert before == [sequence.token_ids for sequence in sequences]
        self.made += zip(before, drafts, strict=True)
        return [
            self._replaced(s, d, len(self.made) + i)
            for i, (s, d) in enumerate(zip(sequences, drafts, strict=True))
        ]

    def _replaced(self, sequence, draft, turn):
        rest = self.answers[tuple(sequence.token_ids[: sequence.num_prompt_tokens])][
            sequence.num_new_tokens :
        ]
        right = turn % (LENGTH + 2)
        guesses = rest[: min(right, len(draft))] + draft.token_ids[right:]
        return Draft(guesses, draft.grades[:]) if turn % 3 else Draft([*draft.token_ids], [*draft.grades])

    def note(self, passed):
        self.drafter.note(passed)
        self.most_bytes = max(self.most_bytes, self.drafter.num_bytes)

    def retire(self, sequence):
        self.drafter.retire(sequence)

    def clear(self, running):
        self.drafter.clear(running)


def head_drafter(runner: ModelRunner) -> HeadDrafter:
    assert runner.model.draft_head is not None
    return HeadDrafter(runner.model.draft_head, runner.kv_cache.layers, runner.make_batch, runner.sampler)


def drafting(model: Path, folder: Path, **config) -> ModelRunner:
    settings = {"drafts_always": True} | config
    return make_runner(model, exit_mode="speculative", drafters=["head"], draft_head=str(folder), **settings)


class Reference:
    """Drafts by the module that is trained, over whole texts."""

    def __init__(self, model: Path, head: DraftHead, vocabulary: torch.Tensor | None):
        self.head, self.back = head, backbone(model)
        self.embedding = self.back.embedding()
        self.rows = self.back.head if vocabulary is None else vocabulary
        self.runner = make_runner(model)

    @torch.no_grad()
    def draft(self, known: list[int], length: int) -> list[int]:
        states, drafts = self.states(known[:-1]), list[int]()
        for step in range(length):
            ids = torch.tensor(known + drafts)
            padded = {d: torch.nn.functional.pad(s, (0, 0, 0, 1 + step))[None] for d, s in states.items()}
            outs = [*self.head.unroll(self.back, padded, self.embedding[ids][None], step + 1)]
            features = self.back.normed(outs[step][0, -1:])
            drafts.append(int(logits_of(self.head, features, self.rows, self.back.head).argmax()))
        return drafts

    def states(self, ids: list[int]) -> dict[int, torch.Tensor]:
        """The model's own states (n, H) behind the head's depths."""
        runner = self.runner
        batch = BatchMaker(16, torch.device("cpu"))(lay_out([NewSequence(0, 0, ids, len(ids), 0)], 16))
        hidden, states = runner.decoder.embed(batch), {}
        for layer in range(runner.depth):
            hidden = runner.decoder.run_layer(layer, hidden, batch, runner.kv_cache.layers[layer])
            if layer + 1 in self.head.depths:
                states[layer + 1] = hidden
        return states


def said(made):
    return [(one.ids, one.finish) for one in made]


def answers_of(prompts, made):
    return {tuple(prompt): one.ids for prompt, one in zip(prompts, made, strict=True)}


@pytest.mark.parametrize("rank", [None, 24])
@pytest.mark.parametrize("blocks", [None, 13])
def test_drafts_are_those_of_the_module_in_training(tiny_model, tmp_path, rank, blocks):
    """In chunks, in company, after refused and accepted drafts, and when preempted."""
    model = tiny_model("llama")
    head = random_head(model, rank, rank and 8)
    vocabulary = rank and random_vocabulary(model, rank)
    folder = write_plain(tmp_path, head, vocabulary)
    prompts = prompts_of(
        make_runner(model).decoder.shape.vocab_size, LENGTHS if blocks is None else [60, 61, 62]
    )
    expected = generate(make_runner(model), prompts, 20)
    tight = {}
    if blocks:
        tight = {"max_total_tokens": 160, "kv_cache_bytes": blocks * drafting(model, folder).block_bytes}
    runner = drafting(model, folder, **tight)
    recorded = Recorded(head_drafter(runner), answers_of(prompts, expected))
    runner.draft_with([recorded], always=True)
    made = generate(runner, prompts, 20, chunk=13)
    assert said(made) == said(expected)
    assert bool(blocks) == any(one.num_preemptions for one in made)
    reference = Reference(model, head, vocabulary)
    drafts = [(known, draft) for known, draft in recorded.made if draft][::2]
    assert len(drafts) > 10 and {len(draft) for _, draft in drafts} == {1, 2, 3, 4}
    for known, draft in drafts:
        assert draft.token_ids == reference.draft(known, len(draft))
        assert all(0 <= grade < NUM_GRADES for grade in draft.grades)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_no_answer_of_any_family_changes(every_tiny_model: Path, tmp_path, temperature: float):
    folder = write_plain(tmp_path, random_head(every_tiny_model))
    full, runner = make_runner(every_tiny_model), drafting(every_tiny_model, folder)
    prompts = prompts_of(full.decoder.shape.vocab_size, LENGTHS)
    asked = [Sampling(temperature=temperature, seed=i, top_p=0.9) for i in range(len(prompts))]
    expected = generate(full, prompts, 20, asked)
    recorded = Recorded(head_drafter(runner), answers_of(prompts, expected))
    runner.draft_with([recorded], always=True)
    for _ in range(2):
        assert said(generate(runner, prompts, 20, asked, chunk=11)) == said(expected)
    assert any(draft for _, draft in recorded.made)
    assert recorded.most_bytes <= len(prompts) * 16 * 3 * full.decoder.shape.hidden_size * 4
    assert recorded.drafter.num_bytes == 0


def test_sampled_drafts_are_drawn_with_the_noise_of_their_position(tiny_model, tmp_path):
    """A head that computes what the model does draws what the model draws."""
    model = tiny_model("llama")
    runner = drafting(model, write_plain(tmp_path, random_head(model)))
    trained = runner.model.draft_head
    prompts = prompts_of(200, LENGTHS)
    asked = [Sampling(temperature=1.0, seed=i) for i in range(len(prompts))]
    expected = generate(make_runner(model), prompts, 20, asked)
    answers = answers_of(prompts, expected)
    drafter = head_drafter(runner)
    hits = []

    def propose(sequences, max_lengths, asks=drafter.propose):
        drafts = asks(sequences, [min(1, most) for most in max_lengths])
        for sequence, draft in zip(sequences, drafts, strict=True):
            rest = answers[tuple(sequence.token_ids[: sequence.num_prompt_tokens])][sequence.num_new_tokens :]
            hits.extend([draft.token_ids == rest[:1]] if draft else [])
        return drafts

    drafter.propose = propose  # type: ignore[method-assign]
    runner.draft_with([drafter], always=True)
    # any two distributions that are near uniform: with common noise they agree far more often than 1 in 200
    assert said(generate(runner, prompts, 20, asked)) == said(expected)
    assert trained is not None and len(hits) > 100 and sum(hits) / len(hits) > 0.1


def test_what_the_prefix_cache_holds_has_the_head_s_keys_too(tiny_model, tmp_path):
    model = tiny_model("llama")
    runner = drafting(model, write_plain(tmp_path, random_head(model)), prefix_cache=True)
    prompt = prompts_of(200, [70])
    expected = generate(make_runner(model), prompt, 12)
    block = runner.model.draft_head.block
    first = generate(runner, prompt, 12)
    before = runner.kv_cache.layers[block].keys.clone()
    again = generate(runner, prompt, 12)
    assert said(first) == said(again) == said(expected)
    assert again[0].num_cached_tokens == 64
    held = [i for i in range(len(before)) if before[i].any()]
    assert len(held) >= 5
    same = [i for i in held if torch.equal(before[i], runner.kv_cache.layers[block].keys[i])]
    assert len(same) >= 4
