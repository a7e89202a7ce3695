"""What a request says of single tokens holds in every mode, and exits are asked by what may be drawn."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from shard.engine.sampler import Draw, Sampler
from shard.engine.sequence import Sequence
from shard.engine.token_rules import FORBIDDEN, TokenRules
from shard.messages import FinishReason, NewSequence, Sampling
from shard.ops.plain import PlainOps
from tests.shard.driving import generate, load_reference, make_runner, prompts_of

VOCAB = 259
LAYERS = [1, 2, 3]
CPU = torch.device("cpu")
NEAR = 1e-4  # two logits or a confidence and its threshold, closer than this, may fall either way
BIAS = {id: 3.0 - id % 7 for id in range(0, VOCAB, 3)}
ALLOWED = list(range(40, 120))
BAD = [[7], *([id, other] for id in range(20, VOCAB, 4) for other in range(0, VOCAB, 5))]

RULES: dict[str, Sampling] = {
    "logit_bias": Sampling(logit_bias=BIAS),
    "allowed_token_ids": Sampling(allowed_token_ids=ALLOWED),
    "bad_words": Sampling(bad_token_ids=BAD),
    "min_tokens": Sampling(min_tokens=9, stop_token_ids=list(range(0, VOCAB, 2))),
    "all": Sampling(logit_bias=BIAS, allowed_token_ids=ALLOWED, bad_token_ids=BAD, min_tokens=4),
}


def by_the_letter(sampling: Sampling, logits: torch.Tensor, answer: list[int]) -> torch.Tensor:
    """The rules, one token after the other."""
    changed = logits.clone().float()
    for id, bias in sampling.logit_bias.items():
        changed[id] += bias
    bad = {word[-1] for word in sampling.bad_token_ids if [*answer, word[-1]][-len(word) :] == word}
    for id in range(len(changed)):
        is_allowed = not sampling.allowed_token_ids or id in sampling.allowed_token_ids
        is_bad = id in bad
        is_early = len(answer) < sampling.min_tokens and id in sampling.stop_token_ids
        if not is_allowed or is_bad or is_early:
            changed[id] = -torch.inf
    return changed


def changed(sampling: Sampling, logits: torch.Tensor, tokens: list[int], num_prompt_tokens: int = 1) -> Any:
    """Logits (V,) by our rules, with what they exclude as minus infinity."""
    sequence = Sequence(NewSequence(0, 0, tokens, num_prompt_tokens, 100, sampling=sampling))
    rules, scores = TokenRules([2], CPU), logits.clone()
    if rules.bind(sequence, len(tokens)):
        rules.apply(scores, sequence, len(tokens))
    return scores.masked_fill(scores < -1e15, -torch.inf)


@pytest.mark.parametrize("name", ["logit_bias", "bad_words", "min_tokens", "allowed_token_ids"])
def test_a_rule_is_that_of_transformers(name: str) -> None:
    from transformers import generation

    logits, tokens = torch.randn(VOCAB, generator=torch.Generator().manual_seed(0)), [5, 22, 9, 24]
    allowed = list(range(10, 30))
    forbidden = [id for id in range(VOCAB) if id not in allowed]
    cases: dict[str, tuple[Sampling, Any]] = {
        "logit_bias": (
            Sampling(logit_bias={3: -1.5, 7: 2.0}),
            generation.SequenceBiasLogitsProcessor([[[3], -1.5], [[7], 2.0]]),
        ),
        "bad_words": (
            Sampling(bad_token_ids=[[7], [24, 8], [9, 24, 11], [9, 1]]),
            generation.NoBadWordsLogitsProcessor([[7], [24, 8], [9, 24, 11], [9, 1]]),
        ),
        "min_tokens": (
            Sampling(min_tokens=4),
            generation.MinNewTokensLengthLogitsProcessor(1, 4, 2, device="cpu"),
        ),
        "allowed_token_ids": (
            Sampling(allowed_token_ids=allowed),
            generation.SuppressTokensLogitsProcessor(forbidden, device="cpu"),
        ),
    }
    sampling, processor = cases[name]
    expected = processor(torch.tensor([tokens]), logits.clone()[None])[0]
    torch.testing.assert_close(changed(sampling, logits, tokens), expected)


def test_a_bad_word_is_the_answers_own() -> None:
    """What the prompt ends with is no beginning of one."""
    logits = torch.zeros(VOCAB)
    sampling = Sampling(bad_token_ids=[[5, 6]])
    assert changed(sampling, logits, [5], num_prompt_tokens=1)[6] == 0
    assert changed(sampling, logits, [5, 5], num_prompt_tokens=1)[6] == -torch.inf


def test_where_rules_leave_nothing_the_clients_list_stands() -> None:
    """An end too early or a bad word is drawn rather than a token that is not allowed at all."""
    sampling = Sampling(allowed_token_ids=[2], min_tokens=5, bad_token_ids=[[2]], temperature=1.0, seed=1)
    sampler = Sampler(PlainOps(16), CPU, [2])
    sequence = Sequence(NewSequence(0, 0, [1], 1, 100, sampling=sampling))
    for temperature in (0.0, 0.01, 5.0):
        sequence.sampling = Sampling(**{**_fields(sampling), "temperature": temperature})
        [token] = sampler.choose(torch.randn(1, VOCAB), [Draw(sequence, 1, 4)])
        assert token.id == 2


@pytest.mark.parametrize("temperature", [1e-6, 0.1, 100.0])
def test_rules_hold_at_any_temperature(temperature: float) -> None:
    asked = Sampling(allowed_token_ids=[3, 4], temperature=temperature, top_p=0.99, typical_p=0.9)
    sampler = Sampler(PlainOps(16), CPU)
    for seed in range(20):
        sampling = Sampling(**{**_fields(asked), "seed": seed})
        sequence = Sequence(NewSequence(0, 0, [1], 1, 100, sampling=sampling))
        [token] = sampler.choose(torch.randn(1, VOCAB), [Draw(sequence, 1, 4)])
        assert token.id in (3, 4)


def test_reported_logprobs_stay_the_models_own() -> None:
    logits = torch.randn(1, VOCAB)
    sequence = Sequence(NewSequence(0, 0, [1], 1, 9, sampling=Sampling(allowed_token_ids=[3])))
    [token] = Sampler(PlainOps(16), CPU).choose(logits, [Draw(sequence, 1, 4)])
    assert token.logprob == pytest.approx(torch.log_softmax(logits[0], -1)[3].item(), abs=1e-5)
    assert logits.min() > FORBIDDEN


@pytest.mark.parametrize("rule", RULES)
def test_at_full_depth_tokens_are_those_of_transformers_by_the_letter(tiny_model, rule: str) -> None:
    folder, sampling = tiny_model("llama"), RULES[rule]
    model = load_reference(folder)
    prompts = prompts_of(VOCAB, [4, 30])
    for prompt, made in zip(prompts, _generate(folder, prompts, sampling), strict=True):
        check(model, prompt, made, sampling, exits=[], threshold=2.0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", ["per_row", "synchronized"])
def test_rows_leave_by_what_they_may_draw(tiny_model, mode: str, rule: str) -> None:
    folder, sampling = tiny_model("llama"), RULES[rule]
    config = {"exit_mode": mode, "exit_layers": LAYERS, "exit_fallback": False, "exit_deferral": False}
    prompts = prompts_of(VOCAB, [12]) if mode == "synchronized" else prompts_of(VOCAB, [4, 30, 12])
    all_leave = _generate(folder, prompts, sampling, exit_threshold=0.0, **config)
    known = sorted(t.confidence for made in all_leave for t in made.tokens if t.confidence is not None)
    threshold = known[len(known) // 2] + 2 * NEAR
    model = load_reference(folder)
    layers = set()
    for prompt, made in zip(
        prompts, _generate(folder, prompts, sampling, exit_threshold=threshold, **config), strict=True
    ):
        check(model, prompt, made, sampling, LAYERS, threshold)
        layers |= {token.exit_layer for token in made.tokens[1:]}
    assert len(layers) > 1


@pytest.mark.parametrize("rule", RULES)
def test_capped_draws_and_asks_by_them(tiny_model, rule: str) -> None:
    folder, sampling = tiny_model("llama"), RULES[rule]
    model, prompts = load_reference(folder, num_layers=2), prompts_of(VOCAB, [4, 30])
    config = {"exit_mode": "capped", "num_layers": 2, "exit_layers": [2]}
    for prompt, made in zip(prompts, _generate(folder, prompts, sampling, **config), strict=True):
        check(model, prompt, made, sampling, exits=[], threshold=2.0)
        for token, scores in zip(made.tokens, _by_the_letter(model, prompt, made, sampling), strict=True):
            assert token.confidence == pytest.approx(scores[-1].softmax(-1).max().item(), abs=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("rule", RULES)
def test_speculative_stays_full(tiny_model, rule: str, temperature: float) -> None:
    folder = tiny_model("llama")
    sampling = Sampling(**{**_fields(RULES[rule]), "temperature": temperature, "seed": 3})
    prompts = prompts_of(VOCAB, [3, 17, 40, 9])
    full = _generate(folder, prompts, sampling)
    config = {"exit_mode": "speculative", "exit_layers": [1, 2], "exit_fallback": False}
    assert [made.ids for made in _generate(folder, prompts, sampling, **config)] == [
        made.ids for made in full
    ]


@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"exit_mode": "per_row", "exit_layers": LAYERS, "exit_threshold": 0.0, "exit_fallback": False},
        {"exit_mode": "capped", "exit_layers": [2], "num_layers": 2},
        {"exit_mode": "speculative", "exit_layers": [1], "exit_fallback": False},
    ],
    ids=["full", "per_row", "capped", "speculative"],
)
def test_a_stop_token_ends_an_answer_once_it_may(tiny_model, mode: dict[str, Any]) -> None:
    runner = make_runner(tiny_model("llama"), **mode)
    [prompt] = prompts_of(VOCAB, [6])
    [whole] = generate(runner, [prompt], 20)
    stop = whole.ids[10]
    [stopped] = generate(runner, [prompt], 20, [Sampling(stop_token_ids=[stop])])
    assert stopped.ids == whole.ids[: whole.ids.index(stop) + 1]
    assert stopped.finish is FinishReason.STOP
    [longer] = generate(runner, [prompt], 20, [Sampling(stop_token_ids=[stop], min_tokens=15)])
    assert len(longer.ids) > 15
    assert stop not in longer.ids[:15]


def check(
    model: torch.nn.Module,
    prompt: list[int],
    made: Any,
    sampling: Sampling,
    exits: list[int],
    threshold: float,
) -> None:
    """Each token, and the exit it left at, is what the reference's hidden states and the rules say."""
    for at, (token, scores) in enumerate(
        zip(made.tokens, _by_the_letter(model, prompt, made, sampling, exits), strict=True)
    ):
        asked = list(zip(exits, scores, strict=False)) if at else []  # a prompt runs to the end
        sure = [(layer, own, own.softmax(-1).max().item()) for layer, own in asked]
        if any(abs(confidence - threshold) < NEAR for _, _, confidence in sure):
            continue
        left = next(((layer, own) for layer, own, confidence in sure if confidence >= threshold), None)
        layer, own = left or (token.exit_layer if not exits else 4, scores[-1])
        best = own.topk(2).values
        assert token.exit_layer == layer, f"token {at}"
        assert token.id == own.argmax().item() or best[0] - best[1] < NEAR, f"token {at}"


@torch.inference_mode()
def _by_the_letter(
    model: torch.nn.Module, prompt: list[int], made: Any, sampling: Sampling, exits: Iterable[int] = ()
) -> list[list[torch.Tensor]]:
    """For each token of an answer its scores at each exit, then those at the end."""
    ran = model(torch.tensor([prompt + made.ids]), output_hidden_states=True)
    rows = range(len(prompt) - 1, len(prompt) - 1 + len(made.ids))
    head: Callable[[torch.Tensor], torch.Tensor] = model.get_output_embeddings()
    norm = model.model.norm if exits else None
    logits = [head(norm(ran.hidden_states[layer][0])) for layer in exits] + [ran.logits[0]]  # type: ignore[misc]
    return [
        [by_the_letter(sampling, own[row], made.ids[:at]) for own in logits] for at, row in enumerate(rows)
    ]


def _generate(folder: Path, prompts: list[list[int]], sampling: Sampling, **config: Any) -> list[Any]:
    runner = make_runner(folder, **config)
    return generate(runner, prompts, 16, [sampling] * len(prompts))


def _fields(sampling: Sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in Sampling.__struct_fields__}
