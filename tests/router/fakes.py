"""Requests for tests of the router's core: a token's text is its id, so answers compare at a glance."""

from typing import Any

import msgspec

from router.catalog.served_model import ServedModel, Target
from router.scheduling.request import Request, Spec
from router.text.prompt import Prompt
from router.text.tokenizer import Token
from shard.messages import Ready, Sampling, ShardConfig, TokenOutput
from shard.sim.sim_runner import CostModel

DEFAULT_COSTS = CostModel()


class FakeTokenizer:
    """A text is ids with a blank behind each; equal digests write alike. `shift` is added to every id."""

    template_source = call_format = None

    def __init__(self, digest: str = "fake", shift: int = 0):
        self.digest = digest
        self.shift = shift

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [int(word) + self.shift for word in text.split()]

    def detokenizer(self, prompt_token_ids: list[int]) -> "FakeDetokenizer":
        return FakeDetokenizer(self.shift)


class FakeDetokenizer:
    """Every token's text is its id and a blank."""

    def __init__(self, shift: int = 0) -> None:
        self.text = ""
        self.shift = shift

    @property
    def marked_text(self) -> str:
        return self.text

    def switch(self, tokenizer: FakeTokenizer) -> None:
        self.shift = tokenizer.shift

    def push(self, output: TokenOutput) -> Token:
        text = f"{output.id - self.shift} "
        self.text += text
        return Token(output.id, text, output.logprob, False, output.exit_layer, output.confidence)

    def find_stop(self, stops: tuple[str, ...]) -> str | None:
        return next((stop for stop in stops if stop in self.text), None)


TOKENIZER = FakeTokenizer()
READY = Ready("m", "v1", "sim", "float32", 30, 30, 32_000, 8192, 16, 1000, [2], 0, 0, 0.0)


def make_target(name: str = "m", tokenizer: FakeTokenizer = TOKENIZER, **config: Any) -> Target:
    return Target(name, ShardConfig(**{"model": name, "device": "sim"} | config), tokenizer)


def make_served_model(epoch: int = 0, target: Target | None = None, **ready: Any) -> ServedModel:
    return ServedModel(epoch, target or make_target(), msgspec.structs.replace(READY, **ready))


def make_spec(num_prompt_tokens: int = 8, max_new_tokens: int = 8, first: int = 1000, **more: Any) -> Spec:
    """A prompt of consecutive ids of the vocabulary; sampled with `first` as its seed, so answers differ."""
    begin = first % (READY.vocab_size - 1000)
    prompt = list(range(begin, begin + num_prompt_tokens))
    sampling = Sampling(seed=first)
    asked = {"tokenizer": TOKENIZER, "prompt": Prompt("".join(f"{id} " for id in prompt))} | more
    return Spec(prompt_token_ids=prompt, max_new_tokens=max_new_tokens, sampling=sampling, **asked)


def make_request(id: int, arrived: float = 0.0, spec: Spec | None = None, **more: Any) -> Request:
    return Request(id, spec or make_spec(first=1000 * (id + 1), **more), arrived)


def expected_answer(spec: Spec, costs: CostModel = DEFAULT_COSTS) -> list[int]:
    """What the simulated model answers, computed without it."""
    tokens = list(spec.prompt_token_ids)
    for _ in range(spec.max_new_tokens):
        token = costs.next_token(tokens[-1], len(tokens), spec.sampling.seed)
        if spec.ignore_eos and token == costs.eos_token_id:
            token = 256
        tokens.append(token)
        if token == costs.eos_token_id:
            break
    return tokens[len(spec.prompt_token_ids) :]


def answer_of(request: Request) -> list[int]:
    return [output.id for output in request.outputs]
