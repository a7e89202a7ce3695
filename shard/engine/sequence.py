"""A running request's state on a shard. Plain data: what it computes is decided by the step, not here."""

from typing import Any

from shard.messages import FinishReason, NewSequence, Sampling


class Sequence:
    """One attempt at one generation: its tokens, how far they are computed, and the blocks of its KV."""

    def __init__(self, new: NewSequence):
        self.id = new.id
        self.attempt = new.attempt
        self.token_ids = list(new.token_ids)
        self.num_prompt_tokens = new.num_prompt_tokens
        self.max_new_tokens = new.max_new_tokens
        self.ignore_eos = new.ignore_eos
        self.sampling: Sampling = new.sampling
        self.exit_threshold = new.exit_threshold
        self.exact = new.exact
        self.scores = new.scores
        self.runner_state: Any = None  # the runner's own, gone with the sequence
        self.waits = False  # all tokens are computed as far as the first exit; what comes of it is not known
        self.num_computed_tokens = 0
        self.blocks: list[int] = []

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_new_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def max_tokens(self) -> int:
        """How long it can grow by its own limits."""
        return max(self.num_tokens, self.num_prompt_tokens + self.max_new_tokens)

    @property
    def is_scored(self) -> bool:
        """True when its prompt's or its answer's tokens are looked at one by one."""
        return self.scores or self.sampling.prompt_logprobs

    @property
    def may_exit(self) -> bool:
        """False when every token is to come from full depth."""
        return not self.exact and (self.exit_threshold is None or self.exit_threshold < 1)

    @property
    def num_pending_tokens(self) -> int:
        """Known tokens whose KV is not computed yet: a whole prompt at first, one while decoding."""
        return self.num_tokens - self.num_computed_tokens

    def finish_reason(self, eos_token_ids: frozenset[int], max_total_tokens: int) -> FinishReason | None:
        """Why the sequence is over, looking at its last token; None while it goes on."""
        if self.num_new_tokens > self.sampling.min_tokens:
            if not self.ignore_eos and self.token_ids[-1] in eos_token_ids:
                return FinishReason.EOS
            if self.token_ids[-1] in self.sampling.stop_token_ids:
                return FinishReason.STOP
        if self.num_new_tokens >= self.max_new_tokens or self.num_tokens >= max_total_tokens:
            return FinishReason.LENGTH
        return None
