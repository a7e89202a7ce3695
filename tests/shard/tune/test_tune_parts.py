"""The parts of tuning, each against what defines it."""

import pytest
import torch

from shard.tune.folder import quantised, restored
from shard.tune.loss import Targets, distance, draw_candidates
from shard.tune.probe import fit_probe, probed
from shard.tune.prompts import SHIPPED, is_held_out, read_prompts, shuffled
from shard.tune.text import Passage, load_passages, save_passages
from shard.tune.training import rate_share

VOCAB, RANK, ROWS, TOP = 60, 8, 30, 5


@pytest.fixture
def teacher() -> Targets:
    logits = 3 * torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(1))
    top = logits.log_softmax(-1).topk(TOP)
    return Targets(top.indices, top.values)


def student(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reduced = torch.randn(ROWS, RANK, generator=generator)
    return reduced.requires_grad_(), torch.randn(VOCAB, RANK, generator=generator).requires_grad_()


def exact(reduced: torch.Tensor, vocabulary: torch.Tensor, targets: Targets) -> torch.Tensor:
    """KL of the likeliest tokens and one outcome for all others, by its definition."""
    q = (reduced @ vocabulary.t()).softmax(-1)
    p, own = targets.logprobs.exp(), q.gather(1, targets.ids)
    rest_p, rest_q = 1 - p.sum(-1), 1 - own.sum(-1)
    return ((p * (p / own).log()).sum(-1) + rest_p * (rest_p / rest_q).log()).mean()


def test_over_the_whole_vocabulary_loss_and_gradients_are_those_of_the_divergence(teacher: Targets):
    ours, theirs = student(2), student(2)
    candidates = draw_candidates(teacher.ids, VOCAB, VOCAB, seed=0)
    measured = distance(ours[0], ours[1][candidates.ids], teacher, candidates)
    loss = exact(*theirs, teacher)
    measured.loss.backward()
    loss.backward()
    assert measured.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    for own, true in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, true.grad, rtol=1e-3, atol=1e-5)


def test_a_sample_of_the_vocabulary_estimates_the_divergence(teacher: Targets):
    some = Targets(teacher.ids[:4], teacher.logprobs[:4])
    reduced, vocabulary = (tensor.detach() for tensor in student(2))
    true = exact(reduced[:4], vocabulary, some).item()
    estimates = []
    for seed in range(60):
        candidates = draw_candidates(some.ids, VOCAB, 20, seed)
        assert len(candidates.ids) < VOCAB
        estimates.append(distance(reduced[:4], vocabulary[candidates.ids], some, candidates).loss.item())
    assert sum(estimates) / len(estimates) == pytest.approx(true, rel=0.05)


def test_agreement_counts_equal_first_choices(teacher: Targets):
    perfect = torch.zeros(ROWS, VOCAB).scatter_(1, teacher.ids[:, :1], 9.0)
    perfect[0] = -perfect[0]
    candidates = draw_candidates(teacher.ids, VOCAB, VOCAB, seed=0)
    measured = distance(perfect, torch.eye(VOCAB)[candidates.ids], teacher, candidates)
    assert measured.agreement.item() == pytest.approx(1 - 1 / ROWS)


def test_int8_rows_are_within_half_a_step_of_what_they_stand_for():
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    tensors = quantised("a.weight", weight)
    error = (restored(tensors)["a.weight"] - weight).abs()
    assert (error <= tensors["a.weight_scale"] / 2 + 1e-7).all()
    assert tensors["a.weight"].dtype == torch.int8


def test_a_probe_finds_what_one_direction_tells():
    generator = torch.Generator().manual_seed(0)
    hidden = 5 + 3 * torch.randn(2000, 12, generator=generator)
    chance = torch.sigmoid(1.5 * (hidden[:, 2] - 5))
    agrees = torch.rand(2000, generator=generator) < chance
    probabilities = probed(fit_probe(hidden, agrees), hidden)
    assert (probabilities - chance).abs().mean() < 0.05


def test_the_learning_rate_rises_then_falls_and_never_ends():
    shares = [rate_share(step, 200) for step in range(200)]
    top = shares.index(max(shares))
    assert shares[:top] == sorted(shares[:top])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert 0 < shares[-1] < 0.05


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_prompts_are_many_and_a_tenth_is_held_out_in_any_order(name: str):
    prompts = read_prompts(name)
    assert len(set(prompts)) == len(prompts) > 1900
    held_out = {prompt for prompt in prompts if is_held_out(prompt)}
    assert 0.07 < len(held_out) / len(prompts) < 0.13
    assert {prompt for prompt in shuffled(prompts, 5) if is_held_out(prompt)} == held_out


def test_passages_come_back_as_they_were(tmp_path):
    passages = [Passage([1, 2, 3], 1), Passage([4, 5], 1, held_out=True, sampled=True)]
    save_passages(tmp_path / "few.npz", passages)
    assert load_passages(tmp_path / "few.npz") == passages
