"""Answers with exits on, counted as one would by hand; and what every exit says of given answers."""

from pathlib import Path

import numpy as np
import pytest

from shard.messages import Criterion, NewSequence, Sampling, ShardConfig, Step, Work
from shard.offline import Answer
from shard.runner import ModelRunner
from shard.tune.closed_loop import Wanted, answer, measure
from shard.tune.survey import survey
from shard.tune.trials import Trials
from tests.shard.driving import generate, make_runner, score
from tests.shard.exit_files import write_exits

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3], [40, 41], [11, 12, 13, 14]]
WANTED = Wanted(max_new_tokens=24, batch_size=3)


def trials(model: Path, exits: Path, **changes) -> Trials:
    fields = {"dtype": "float32", "kv_cache_bytes": 1 << 24, "num_threads": 1} | changes
    return Trials(ShardConfig(model=str(model), exits=str(exits), **fields))


@pytest.fixture(scope="module")
def exits(tiny_model, tmp_path_factory) -> Path:
    return write_exits(tmp_path_factory.mktemp("loop") / "exits", tiny_model("llama"), [1, 2], "mlp")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_risks_are_what_one_counts_by_hand(tiny_model, exits: Path, temperature: float):
    tried = trials(tiny_model("llama"), exits)
    runner = tried.with_thresholds({1: 0.05, 2: 0.03})
    wanted = Wanted(24, 3, temperature, seed=1)
    outcome = measure(runner, tried.full, PROMPTS, wanted)
    samplings = [wanted.sampling(number) for number in range(len(PROMPTS))]
    made = generate(runner, PROMPTS, 24, samplings, ignore_eos=False)
    for prompt, sampling, generation, risk in zip(PROMPTS, samplings, made, outcome.risks, strict=True):
        choices = [each.choice for each in score(tried.full, prompt, generation.ids, sampling)]
        wrong = sum(
            token.exit_layer < 4 and token.id != choice
            for token, choice in zip(generation.tokens, choices, strict=True)
        )
        assert risk == wrong / len(generation.tokens)
    layers = [token.exit_layer for generation in made for token in generation.tokens]
    assert outcome.tokens_by_layer == {layer: layers.count(layer) for layer in set(layers)}
    assert outcome.expected_depth == pytest.approx(sum(layers) / len(layers))
    assert sum(outcome.coverage.values()) == pytest.approx(1)
    assert max(outcome.risks) > 0


def test_who_never_leaves_has_no_risk(tiny_model, exits: Path):
    tried = trials(tiny_model("llama"), exits)
    outcome = measure(tried.with_thresholds({1: 1.0, 2: 1.0}), tried.full, PROMPTS, WANTED)
    assert outcome.risks == [0.0] * 4
    assert set(outcome.tokens_by_layer) == {4}


def test_neither_the_batch_nor_preemption_changes_an_outcome(tiny_model, exits: Path):
    model, thresholds = tiny_model("llama"), {1: 0.05, 2: 0.03}
    roomy = trials(model, exits)
    alone = measure(roomy.with_thresholds(thresholds), roomy.full, PROMPTS, Wanted(24, 1))
    tight = trials(model, exits, kv_cache_bytes=3 * roomy.full.block_bytes, max_total_tokens=32)
    together = measure(tight.with_thresholds(thresholds), tight.full, PROMPTS, Wanted(24, 3))
    assert (together.risks, together.tokens_by_layer) == (alone.risks, alone.tokens_by_layer)
    assert sorted(together.confidences) == pytest.approx(sorted(alone.confidences), abs=1e-5)


def test_capped_is_all_early(tiny_model, exits: Path):
    tried = trials(tiny_model("llama"), exits)
    outcome = measure(tried.with_layers(2), tried.full, PROMPTS, WANTED)
    assert set(outcome.tokens_by_layer) == {2}
    assert max(outcome.risks) > 0.5  # its heads are random


def says(runner: ModelRunner, answer: Answer, num_known: int) -> tuple[int, float]:
    """The next token after some of an answer, and how sure of it the first exit is that is asked."""
    known = answer.prompt_token_ids + answer.token_ids[:num_known]
    new = NewSequence(
        0, 0, known, len(answer.prompt_token_ids), num_known + 1, ignore_eos=True, sampling=answer.sampling
    )
    token = runner.run(Step(0, [Work(0, 0, 512)], [new])).outputs[0].tokens[0]
    assert token.confidence is not None
    return token.id, token.confidence


@pytest.mark.parametrize("head", ["norm", "mlp", "block"])
@pytest.mark.parametrize("criterion", list(Criterion))
def test_a_survey_is_what_each_exit_says_when_it_is_asked(tiny_model, tmp_path: Path, head, criterion):
    model = tiny_model("llama")
    folder = write_exits(tmp_path / "exits", model, [2], head)
    tried = trials(model, folder, exit_criterion=criterion)
    answers = sorted(
        (made for made, _ in answer(tried.full, PROMPTS, Wanted(12, 4))), key=lambda made: made.number
    )
    found = survey(tried.with_thresholds({2: 1.0}), criterion, answers, lambda: None)
    hasty = make_runner(
        model,
        exits=str(folder),
        exit_mode="per_row",
        exit_threshold=0.0,
        exit_criterion=criterion,
        exit_fallback=False,
    )
    pairs = [says(hasty, made, at) for made in answers for at in range(1, len(made.token_ids))]
    right = [token for made in answers for token in made.token_ids[1:]]
    (votes,) = found.votes
    assert found.num_layers == 4
    np.testing.assert_allclose(votes.confidences, [sure for _, sure in pairs], atol=2e-5)
    assert votes.agrees.tolist() == [token == said for token, (said, _) in zip(right, pairs, strict=True)]


def test_prompts_have_noise_of_their_own():
    samplings = [Wanted(temperature=0.7, seed=seed).sampling(n) for seed in (0, 1) for n in range(3)]
    assert len({sampling.seed for sampling in samplings}) == 6
    assert Wanted().sampling(0).temperature == Sampling().temperature
