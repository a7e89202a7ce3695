"""The loop's observer: passes steps and answers to the policy, and wakes the loop."""

import asyncio
from collections import Counter
from collections.abc import Callable

from router.catalog.repository import Choice
from router.catalog.served_model import ServedModel
from router.fleet.dispatcher import Dispatcher
from router.policy.reassessor import Reassessor
from router.policy.traffic import Answered
from router.scheduling.observer import Observer
from router.scheduling.request import Request
from shard.messages import FinishReason, Score, StepOutput


class LoopObserver(Observer):
    """`open_policy_state` makes the policy's state when the first shard is ready."""

    def __init__(self, dispatcher: Dispatcher, open_policy_state: Callable[[ServedModel], Reassessor]):
        self.policy_state: Reassessor | None = None
        self.woken = asyncio.Event()  # set when a decision is due
        self._running: dict[int, Counter[str]] = {}  # shard -> number of requests that it began, by class
        self._begun_on: dict[int, int] = {}  # request id -> shard that began it
        self._dispatcher = dispatcher
        self._open_policy_state = open_policy_state

    def on_started(self, request: Request) -> None:
        if request.shard is not None:
            self._begun_on[request.id] = request.shard
            self._running.setdefault(request.shard, Counter())[request.prompt_class] += 1

    def on_finished(self, request: Request) -> None:
        shard = self._begun_on.pop(request.id, None)
        if shard is not None:
            self._running[shard][request.prompt_class] -= 1
        if self.policy_state is not None and isinstance(request.outcome, FinishReason):
            self.policy_state.on_answered(_answered(request))
            self._wake_if_due(self.policy_state)

    def on_scored(self, request: Request, scores: list[Score]) -> None:
        """Wake the loop if scores of live answers may revoke a served choice."""
        self.woken.set()

    def on_step(self, shard: int, output: StepOutput) -> None:
        policy_state, served_model = self.policy_state, self._dispatcher.served_model(shard)
        if policy_state is None or served_model is None or served_model.choice not in policy_state.served:
            return
        exits = output.exits if output.epoch == served_model.epoch else None
        if self._has_strangers(shard, policy_state, served_model.choice):
            exits = None  # classes sent elsewhere for their breaches would count again
        num_tokens = 0 if exits is None else sum(exits.tokens_by_exit.values())
        policy_state.watch.on_step(
            served_model.choice, output.num_sequences, num_tokens, 0 if exits is None else exits.breaches
        )
        if policy_state.watch.is_breached:
            self.woken.set()

    def on_shard_ready(self, shard: int, served_model: ServedModel) -> None:
        if self.policy_state is None:
            self.policy_state = self._open_policy_state(served_model)
        self.policy_state.watch.num_shards = len(self._dispatcher.served_models)
        ready = served_model.ready
        self.policy_state.note_loaded(served_model.choice, ready.version, is_certified=not ready.warnings)

    def _has_strangers(self, shard: int, policy_state: Reassessor, choice: Choice) -> bool:
        """Under a split: the shard still runs requests of classes now sent elsewhere."""
        if not policy_state.split:
            return False
        running = self._running.get(shard, Counter())
        return any(running[name] and choice not in able for name, able in policy_state.admitted.items())

    def _wake_if_due(self, policy_state: Reassessor) -> None:
        if policy_state.watch.is_due:
            self.woken.set()


def _answered(request: Request) -> Answered:
    author = request.written_by
    sure = [output.confidence for output in request.outputs if output.confidence is not None]
    return Answered(
        choice=None if author is None else Choice(author.model, author.depth),
        prompts=request.prompt_class,
        num_prompt_tokens=request.num_prompt_tokens,
        num_tokens=len(request.outputs),
        mean_exit_layer=request.mean_exit_layer or 0.0,
        mean_confidence=sum(sure) / len(sure) if sure else None,
    )
