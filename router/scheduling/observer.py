"""What the router tells those who measure it. Whoever listens learns of it after the tokens have gone out."""

from router.catalog.served_model import ServedModel
from router.scheduling.request import Request
from shard.messages import Score, StepOutput, TokenOutput


class Observer:
    """Told of everything worth measuring, after the tokens have gone out. Must return at once, not raise.

    What a kind of observer does not care for it need not define.
    """

    def on_submitted(self, request: Request) -> None:
        """Taken in; it waits."""

    def on_started(self, request: Request) -> None:
        """Put into a step for the first time."""

    def on_tokens(self, request: Request, tokens: list[TokenOutput], gap_s: float | None) -> None:
        """Tokens appended to `request.outputs`, `gap_s` after those before; None: they are the first."""

    def on_finished(self, request: Request) -> None:
        """Ended in whatever way: `request.outcome` says which."""

    def on_scored(self, request: Request, scores: list[Score]) -> None:
        """An ended request's answer was read again: what full depth says of each of its tokens."""

    def on_preempted(self, request: Request) -> None:
        """Out of its shard's batch for want of KV blocks; it will be started again."""

    def on_step(self, shard: int, output: StepOutput) -> None:
        """A shard has answered a step."""

    def on_shard_ready(self, shard: int, served_model: ServedModel) -> None:
        """What requests begin on there from now on: it has started, or its model was changed."""

    def on_swap(self, shard: int, outcome: str, phases_ms: dict[str, float]) -> None:
        """A change of model was `committed` or has `failed`."""

    def on_shard_death(self, shard: int, reason: str) -> None:
        """It will be started again."""
