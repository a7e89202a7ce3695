"""What is drawn follows the distribution asked for, and depends on seed and position alone."""

import pytest
import torch

from shard.engine.sampler import LOWEST, Draw, Sampler, keep_near_best, keep_typical, noise_key, penalise
from shard.engine.sequence import Sequence
from shard.messages import NewSequence, Sampling
from shard.ops.plain import PlainOps, gumbel

VOCAB = 50


def sequence(tokens: list[int], num_prompt_tokens: int = 1, **sampling) -> Sequence:
    return Sequence(NewSequence(0, 0, tokens, num_prompt_tokens, 100, sampling=Sampling(**sampling)))


def draw(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    sampler = Sampler(PlainOps(16), torch.device("cpu"))
    draws = [Draw(sequence, sequence.num_tokens, exit_layer=4) for sequence in sequences]
    return [token.id for token in sampler.choose(logits, draws)]


def test_greedy_takes_the_likeliest_and_the_lowest_of_equals():
    logits = torch.zeros(2, VOCAB)
    logits[0, 7] = 1.0
    assert draw(logits, [sequence([1]), sequence([1])]) == [7, 0]


@pytest.mark.parametrize("temperature", [1e-40, 1e-9, 9e-6])
def test_a_temperature_next_to_nothing_is_greedy(temperature):
    torch.manual_seed(0)
    logits = torch.randn(3, VOCAB)
    cold = [sequence([1], temperature=temperature, seed=seed) for seed in range(3)]
    assert draw(logits, cold) == logits.argmax(-1).tolist()
    assert cold[0].sampling == Sampling(seed=0)
    assert Sampling(temperature=1e-4).temperature == 1e-4


def test_a_draw_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    logits = torch.randn(6, VOCAB)
    sequences = [
        sequence([1] * (i + 1), temperature=1.0, seed=i, top_p=0.9 if i % 2 else 1.0) for i in range(6)
    ]
    together = draw(logits, sequences)
    alone = [draw(logits[i : i + 1], [sequences[i]])[0] for i in range(6)]
    assert together == alone


def test_draws_follow_the_softmax_at_a_temperature():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    expected = torch.softmax(logits / 0.7, dim=0)
    keys = torch.tensor([noise_key(seed=5, position=i) for i in range(40_000)])
    drawn = PlainOps(16).choose(logits.expand(len(keys), -1), torch.full((len(keys),), 0.7), keys)
    observed = drawn.bincount(minlength=4) / len(keys)
    deviations = (observed - expected) / (expected * (1 - expected) / len(keys)).sqrt()
    assert deviations.abs().max() < 4.5


def test_noise_is_gumbel_and_uncorrelated_between_positions():
    noise = gumbel(torch.tensor([noise_key(1, position) for position in range(200)]), 1000)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(1.6449, abs=0.05)
    centred = noise - noise.mean()
    neighbours = (centred[:-1] * centred[1:]).mean() / noise.var()
    assert abs(neighbours.item()) < 0.01


def test_top_k_and_top_p_bound_what_can_be_drawn():
    torch.manual_seed(0)
    logits = torch.randn(1, VOCAB)
    likeliest = logits[0].argsort(descending=True).tolist()
    by_k = {draw(logits, [sequence([1], temperature=3.0, top_k=3, seed=s)])[0] for s in range(200)}
    assert by_k == set(likeliest[:3])
    by_p = {draw(logits, [sequence([1], temperature=1.0, top_p=0.01, seed=s)])[0] for s in range(20)}
    assert by_p == {likeliest[0]}


def test_repetition_penalty_divides_positive_and_multiplies_negative_scores():
    scores = torch.tensor([2.0, -2.0, 1.0])
    penalise(scores, [0, 1], sequence([0, 1], repetition_penalty=2.0))
    assert scores.tolist() == [1.0, -4.0, 1.0]


def test_frequency_and_presence_count_the_answer_only():
    scores = torch.zeros(4)
    tokens = [0, 0, 1, 1, 2]
    penalise(scores, tokens, sequence(tokens, 2, frequency_penalty=0.5, presence_penalty=0.25))
    assert scores.tolist() == [0.0, -1.25, -0.75, 0.0]


def test_typical_keeps_what_is_close_to_the_entropy():
    from transformers import TypicalLogitsWarper

    torch.manual_seed(0)
    scores = torch.randn(1, VOCAB) * 2
    expected = TypicalLogitsWarper(mass=0.6)(torch.zeros(1, 1, dtype=torch.long), scores.clone())
    ours = scores[0].clone()
    keep_typical(ours, 0.6)
    assert (ours > LOWEST).equal(expected[0] > -torch.inf)


@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.3, 1.0])
def test_min_p_keeps_what_transformers_keeps(min_p: float):
    from transformers import MinPLogitsWarper

    torch.manual_seed(0)
    scores = torch.randn(3, VOCAB) * 2
    expected = MinPLogitsWarper(min_p)(torch.zeros(3, 1, dtype=torch.long), scores.clone())
    ours = scores.clone()
    keep_near_best(ours, torch.full((3,), min_p))
    assert (ours > LOWEST).equal(expected > -torch.inf)


def test_min_p_is_taken_at_the_temperature_and_before_top_p():
    likelihoods = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    seeds = range(300)

    def drawn(**sampling) -> set[int]:
        return {draw(likelihoods.log(), [sequence([1], seed=s, **sampling)])[0] for s in seeds}

    assert drawn(temperature=1.0, min_p=0.6) == {0, 1}
    assert drawn(temperature=3.0, min_p=0.6) == {0, 1, 2, 3}
    # Of 0.4 and 0.3 the first has 57%, not 40%: what min-p has left out counts for nothing.
    assert drawn(temperature=1.0, min_p=0.6, top_p=0.5) == {0}
    assert drawn(temperature=1.0, top_p=0.5) == {0, 1}


def test_reported_logprobs_are_the_models_own():
    torch.manual_seed(0)
    logits = torch.randn(1, VOCAB)
    sampler = Sampler(PlainOps(16), torch.device("cpu"))
    asked = sequence([1], temperature=0.3, top_k=5, seed=3, num_top_tokens=2)
    token = sampler.choose(logits, [Draw(asked, 1, exit_layer=4)])[0]
    logprobs = torch.log_softmax(logits[0], dim=0)
    assert token.logprob == pytest.approx(logprobs[token.id].item(), abs=1e-5)
    assert [id for id, _ in token.top] == logprobs.topk(2).indices.tolist()
    assert token.exit_layer == 4


def test_penalties_apply_to_greedy_too():
    logits = torch.tensor([[1.0, 0.9, 0.0]])
    assert draw(logits, [sequence([2, 0], 1, presence_penalty=0.5)]) == [1]


def test_noise_is_drawn_for_no_batch_that_is_greedy(monkeypatch: pytest.MonkeyPatch):
    """It costs more than the rest of a large vocabulary's draw where it is plain torch."""
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    sequences = [sequence([1], presence_penalty=0.1 * i) for i in range(3)]
    beside_noise = draw(logits, [*sequences[:2], sequence([1], temperature=1.0)])
    monkeypatch.setattr(PlainOps, "choose", lambda *_: pytest.fail("drew noise"))
    assert draw(logits, sequences)[:2] == beside_noise[:2]
