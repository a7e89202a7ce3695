"""Builds a step: the tokens to compute of each request, under one budget. Knows no queue and no shard."""

from router.scheduling.request import Request
from shard.messages import NewSequence


class Batch:
    """A step being built. Tokens added count as in flight at once, so none is asked for twice."""

    def __init__(self, num_left: int):
        self.num_left = num_left
        self.wishes: dict[Request, int] = {}

    def fill(self, requests: list[Request]) -> None:
        """Add all pending tokens of each request, within the budget."""
        for request in requests:
            self.add(request, self.num_left)

    def decode(self, requests: list[Request]) -> None:
        """Add a token of each request that wants work and has no more pending, within the budget."""
        taken = requests[: self.num_left]
        for request in taken:
            self.wishes[request] = 1
            request.num_in_flight_tokens += 1
        self.num_left -= len(taken)

    def add(self, request: Request, limit: int) -> None:
        """Add a request's pending tokens, up to `limit`."""
        num_tokens = min(limit, request.num_wanted_tokens)
        if num_tokens > 0:
            self.wishes[request] = self.wishes.get(request, 0) + num_tokens
            self.num_left -= num_tokens
            request.num_in_flight_tokens += num_tokens


def new_sequence(request: Request, served_model: int) -> NewSequence:
    """The message that starts a request on a shard with `served_model`."""
    spec = request.spec
    return NewSequence(
        request.id,
        request.attempt,
        request.token_ids,
        request.num_prompt_tokens,
        request.max_new_tokens,
        spec.ignore_eos,
        request.sampling,
        spec.exit_threshold,
        spec.exact,
        epoch=served_model,
        grammar=request.grammar,
        cache_salt=spec.cache_salt,
    )
