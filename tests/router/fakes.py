"""Requests for tests of the router's core: a token's text is its id, so answers compare at a glance."""

from typing import Any

from router.request import Request, Spec
from router.tokenizer import Token
from shard.messages import Sampling, TokenOutput
from shard.sim import CostModel

DEFAULT_COSTS = CostModel()


class FakeDetokenizer:
    """Every token's text is its id and a blank."""

    def __init__(self) -> None:
        self.text = ""

    def push(self, output: TokenOutput) -> Token:
        text = f"{output.id} "
        self.text += text
        return Token(output.id, text, output.logprob, False, output.exit_layer, output.confidence)

    def find_stop(self, stops: tuple[str, ...]) -> str | None:
        return next((stop for stop in stops if stop in self.text), None)


def make_spec(num_prompt_tokens: int = 8, max_new_tokens: int = 8, first: int = 1000, **more: Any) -> Spec:
    """A prompt of consecutive ids from `first` on; sampled with `first` as its seed, so answers differ."""
    prompt = list(range(first, first + num_prompt_tokens))
    sampling = Sampling(seed=first)
    return Spec(prompt_token_ids=prompt, max_new_tokens=max_new_tokens, sampling=sampling, **more)


def make_request(id: int, arrived: float = 0.0, spec: Spec | None = None, **more: Any) -> Request:
    return Request(id, spec or make_spec(first=1000 * (id + 1), **more), FakeDetokenizer(), arrived)


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
