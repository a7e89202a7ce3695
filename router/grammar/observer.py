"""The interface of observers of constraints."""

from router.grammar.constraint import Reason


class GrammarObserver:
    """Base class whose methods do nothing."""

    def on_compiled(self, seconds: float) -> None:
        """A constraint was compiled or refused by the compiler, `seconds` after it was asked for."""

    def on_cache_hit(self) -> None:
        """The grammar of a constraint was known, or is being compiled already."""

    def on_refused(self, reason: Reason) -> None:
        """A call was refused for its constraint."""
