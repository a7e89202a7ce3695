"""The interface of observers: events of requests and shards, delivered after the tokens have gone out."""

from router.catalog.served_model import ServedModel
from router.scheduling.request import Request
from router.scheduling.step_tokens import StepTokens
from shard.messages import Score, StepOutput


class Observer:
    """Receives events after the tokens have gone out. Methods must return at once and not raise.

    An observer overrides the methods that it needs.
    """

    def on_submitted(self, request: Request) -> None:
        """A request was queued."""

    def on_started(self, request: Request) -> None:
        """A request was put into a step for the first time."""

    def on_tokens(self, shard: int, tokens: StepTokens) -> None:
        """A step has brought tokens to requests of one model."""

    def on_finished(self, request: Request) -> None:
        """A request ended; `request.outcome` says how."""

    def on_scored(self, request: Request, scores: list[Score]) -> None:
        """A finished answer was scored: full depth's score of each of its tokens."""

    def on_preempted(self, request: Request) -> None:
        """A request left its shard's batch for lack of KV blocks; it will be started again."""

    def on_step(self, shard: int, output: StepOutput) -> None:
        """A shard has answered a step."""

    def on_shard_ready(self, shard: int, served_model: ServedModel) -> None:
        """Requests begin on `served_model` from now on: the shard has started or changed its model."""

    def on_swap(self, shard: int, outcome: str, phases_ms: dict[str, float]) -> None:
        """A change of model was `committed` or has `failed`."""

    def on_shard_death(self, shard: int, reason: str) -> None:
        """A shard died; it will be restarted."""
