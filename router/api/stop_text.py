"""The part of an answer that OpenAI's clients see: text before the stop string, without special tokens."""

from collections.abc import Container, Sequence

from router.scheduling.request import Finished
from router.text.tokenizer import Token


class StopText:
    """The text of one streamed answer. A possible beginning of a stop string is held back until decided.

    Special tokens with a text in `marks` are shown: they tell where a call of a tool begins.
    """

    def __init__(self, stops: Sequence[str], marks: Container[str] = ()):
        self._stops = stops
        self._marks = marks
        self._held = ""
        self._num_shown = 0

    def push(self, token: Token) -> str:
        """Take a token that is not the last; returns what may be shown now."""
        if token.special:
            return self._push_mark(token.text) if token.text in self._marks else ""
        text = self._held + token.text
        num_held = len_of_partial_stop(text, self._stops) if self._stops else 0
        shown = text[: len(text) - num_held]
        self._held = text[len(shown) :]
        self._num_shown += len(shown)
        return shown

    def _push_mark(self, text: str) -> str:
        """Show it behind what was held back, which it keeps from becoming a stop string."""
        held, self._held = self._held, ""
        self._num_shown += len(held)
        return held + text

    def finish(self, finished: Finished) -> str:
        """The remaining text: the last token's, and what was held back."""
        return cut(finished)[self._num_shown :]


def cut(finished: Finished) -> str:
    """A whole answer up to its stop string."""
    return finished.text[: finished.stop_at]


def len_of_partial_stop(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` could be the beginning of a stop string."""
    for length in range(min(len(text), max(map(len, stops)) - 1), 0, -1):
        end = text[-length:]
        if any(len(stop) > length and stop.startswith(end) for stop in stops):
            return length
    return 0
