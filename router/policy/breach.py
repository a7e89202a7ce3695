"""Confidence breaches of a capped model (HELIOS, section 4.3): too many late tokens under threshold."""

from collections import deque


class BreachCounter:
    """Tokens as they come, in steps, of which the last `window` of each shard count."""

    def __init__(self, window: int, limit: int):
        self.num_shards = 1
        self._window = window
        self._limit = limit
        self._steps: deque[tuple[int, int]] = deque()  # tokens, those of them under threshold
        self._num_tokens = 0
        self._num_breaches = 0

    def add(self, num_tokens: int, num_breaches: int) -> None:
        """One step's. The window ends with it, and begins with the step that its first token is in."""
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
        """More than `limit` in `window` tokens; of a step larger than the window, the same share."""
        size = max(self._window * self.num_shards, self._num_tokens)
        return self._num_breaches * self._window > self._limit * size

    @property
    def rate(self) -> float:
        return self._num_breaches / max(1, self._num_tokens)

    def clear(self) -> None:
        """Another model serves: what was counted says nothing of it."""
        self._steps.clear()
        self._num_tokens = self._num_breaches = 0
