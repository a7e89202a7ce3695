"""A running request's state on a shard. Plain data; the step decides what to compute."""

from typing import Any, Protocol

from shard.messages import FinishReason, NewSequence, Sampling


class Constraint(Protocol):
    """What may follow in a sequence. Positions count the prompt's tokens.

    An interface, since `GrammarState` imports torch and llguidance, which simulated shards do without.
    """

    error: str

    @property
    def is_ready(self) -> bool: ...
    def is_over(self, token_ids: list[int]) -> bool: ...
    def forced_token(self, token_ids: list[int], num_tokens: int) -> int | None: ...
    def permits(self, token_ids: list[int], num_tokens: int, token_id: int) -> bool: ...
    def illegal(self, token_ids: list[int], num_tokens: int) -> Any: ...
    def note_forced(self) -> None: ...


class Sequence:
    """One attempt at one request: its tokens, the number computed, and its KV blocks."""

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
        self.constraint: Constraint | None = None
        self.runner_state: Any = None  # owned by the runner
        self.waits = False  # at the first exit, with all tokens computed up to it
        self.num_computed_tokens = 0
        self.blocks: list[int] = []
        self.num_keyed_blocks = 0  # its first ones: those found, and those that others may find
        self.last_key = b""  # of the last of them; empty: none
        self.cache_salt = new.cache_salt
        self.num_cached_tokens = 0  # computed before it came
        self.has_pending = False  # some layers were not run yet for some of its tokens
        self.approximate_from: int | None = None  # the first token with KV that is only projected

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_new_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def max_tokens(self) -> int:
        """Greatest length by its own limits."""
        return max(self.num_tokens, self.num_prompt_tokens + self.max_new_tokens)

    @property
    def is_scored(self) -> bool:
        """True when its prompt's or answer's tokens are scored."""
        return self.scores or self.sampling.prompt_logprobs

    @property
    def may_exit(self) -> bool:
        """False when every token must come from full depth."""
        return not self.exact and (self.exit_threshold is None or self.exit_threshold < 1)

    @property
    def num_pending_tokens(self) -> int:
        """Number of known tokens without KV: a whole prompt at first, one while decoding."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def num_final_tokens(self) -> int:
        """Its first tokens whose KV, of all layers, is what a full pass computes."""
        if self.waits or self.has_pending:
            return 0
        if self.approximate_from is None:
            return self.num_computed_tokens
        return min(self.num_computed_tokens, self.approximate_from)

    @property
    def holds_back(self) -> bool:
        """The token behind its last one cannot be drawn yet: its grammar is still being compiled."""
        return self.constraint is not None and not self.constraint.is_ready

    @property
    def error(self) -> str:
        """Why it cannot go on; "": it can."""
        return "" if self.constraint is None else self.constraint.error

    @property
    def forced_token(self) -> int | None:
        """The only one that may come next, by its grammar."""
        return (
            None if self.constraint is None else self.constraint.forced_token(self.token_ids, self.num_tokens)
        )

    def finish_reason(self, eos_token_ids: frozenset[int], max_total_tokens: int) -> FinishReason | None:
        """Why the sequence is over, looking at its last token; None while it goes on."""
        if self.num_new_tokens > self.sampling.min_tokens:
            if not self.ignore_eos and self.token_ids[-1] in eos_token_ids:
                return FinishReason.EOS
            if self.token_ids[-1] in self.sampling.stop_token_ids:
                return FinishReason.STOP
        if self.constraint is not None and self.constraint.is_over(self.token_ids):
            return FinishReason.EOS
        if self.num_new_tokens >= self.max_new_tokens or self.num_tokens >= max_total_tokens:
            return FinishReason.LENGTH
        return None
