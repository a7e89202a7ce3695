"""Counts confidence breaches of a capped model (HELIOS, section 4.3): recent tokens under threshold."""

from collections import deque


class BreachCounter:
    """Counts tokens by step, in a sliding window of the last `window` tokens of each shard."""

    def __init__(self, window: int, limit: int):
        self.num_shards = 1
        self._window = window
        self._limit = limit
        self._steps: deque[tuple[int, int]] = deque()  # (tokens, tokens under threshold)
        self._num_tokens = 0
        self._num_breaches = 0

    def add(self, num_tokens: int, num_breaches: int) -> None:
        """Add a step. The window ends with it, and begins with the step that holds its first token."""
        if not num_tokens:
            return
        self._steps.append((num_tokens, num_breaches))
        self._num_tokens += num_tokens
        self._num_breaches += num_breaches
        while self._num_tokens - self._steps[0][0] >= self._window * self.num_shards:
            tokens, breaches = self._steps.popleft()
            self._num_tokens -= tokens
            self._num_breaches -= breaches

    @property
    def has_run_over(self) -> bool:
        """More than `limit` of `window` tokens breached, or as large a share of a larger last step."""
        size = max(self._window * self.num_shards, self._num_tokens)
        return self._num_breaches * self._window > self._limit * size

    @property
    def counts(self) -> tuple[int, int]:
        """Tokens under threshold, and all tokens in the window."""
        return self._num_breaches, self._num_tokens

    @property
    def rate(self) -> float:
        return self._num_breaches / max(1, self._num_tokens)

    def clear(self) -> None:
        """Restart the count, when another model serves."""
        self._steps.clear()
        self._num_tokens = self._num_breaches = 0
