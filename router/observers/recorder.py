"""An observer that records telemetry windows: what each model served, how fast, how well.

Receives events after the tokens, adds to sums in memory, and hands them to the store when that flushes.
"""

import time
from collections.abc import Callable

from router.catalog.served_model import ServedModel
from router.scheduling.observer import Observer
from router.scheduling.request import GenerationFailed, Request
from router.scheduling.step_tokens import StepTokens
from shard.messages import ExitReport, FinishReason, OlderReport, Score, StepOutput
from telemetry.cost import StepSample
from telemetry.store import Store
from telemetry.window import ClassUse, Record, Window, add_counts

MAX_LIVING = 64  # latest models of one shard that may still have sequences


class Recorder(Observer):
    """Fills one window per shard, candidate and depth between two flushes."""

    def __init__(
        self,
        store: Store,
        unix_s: Callable[[], float] = time.time,
        num_waiting: Callable[[], int] = lambda: 0,
    ):
        """`num_waiting` is the length of the queue now."""
        self._store = store
        self._num_waiting = num_waiting
        self._unix_s = unix_s
        self._windows: dict[tuple[int, str, int], Window] = {}  # by shard, candidate, depth
        self._served_models: dict[tuple[int, int], ServedModel] = {}  # by shard and epoch
        self._metered: set[int] = set()  # shards whose last step reported joules
        store.on_flush.append(self.hand_over)

    def hand_over(self) -> None:
        """Close the windows and give them to the store."""
        now, windows, self._windows = self._unix_s(), self._windows, {}
        for window in windows.values():
            window.end = now
        router = self._store.router
        self._store.put([Record(*key, window, router) for key, window in windows.items()])

    def on_tokens(self, shard: int, tokens: StepTokens) -> None:
        window = self._window(shard, tokens.served_model)
        add_counts(window.tokens_by_exit, tokens.by_exit)
        if shard in self._metered:
            window.metered_tokens += tokens.num_tokens
        for gap_s, count in tokens.gaps_s.items():
            window.itl_ms.add(1000 * gap_s, count)
        for ttft_s in tokens.ttfts_s:
            window.ttft_ms.add(1000 * ttft_s)

    def on_finished(self, request: Request) -> None:
        window = self._window_of(request)
        if window is None:
            return
        match request.outcome:
            case FinishReason():
                window.requests += 1
                _count_class(window, request)
            case GenerationFailed(kind=kind) if kind != "cancelled":
                window.failures += 1

    def on_scored(self, request: Request, scores: list[Score]) -> None:
        window = self._window_of(request)
        if window is None or request.written_by is None:
            return
        pairs = zip(request.outputs, scores, strict=True)
        drawn = [
            (output.id == score.choice, score.logprob) for output, score in pairs if not output.is_forced
        ]
        if not drawn:
            return
        agreeing, logprob = sum(agrees for agrees, _ in drawn), sum(logprob for _, logprob in drawn)
        window.add_answer(request.prompt_class, len(drawn), agreeing, logprob, _num_bytes(request))

    def on_step(self, shard: int, output: StepOutput) -> None:
        self._note_meter(shard, output.joules)
        served_model = self._served_models.get((shard, output.epoch))
        if served_model is not None:
            self._add_newest(self._window(shard, served_model), served_model, output)
        for older in output.older:
            served_model = self._served_models.get((shard, older.epoch))
            if served_model is not None:
                _add_older(self._window(shard, served_model), older, output)

    def on_shard_ready(self, shard: int, served_model: ServedModel) -> None:
        if served_model.epoch == 0:
            self._forget(shard)
        self._served_models[shard, served_model.epoch] = served_model
        self._prune(shard, served_model.epoch)

    def on_shard_death(self, shard: int, reason: str) -> None:
        self._forget(shard)

    def _add_newest(self, window: Window, served_model: ServedModel, output: StepOutput) -> None:
        window.idle_ms += output.idle_ms
        _add_step(window, output.num_tokens, output.step_ms, output.num_sequences)
        if output.num_tokens:
            window.waiting += self._num_waiting()
        window.joules += (output.joules or 0.0) * _share(output.step_ms, output)
        window.most_blocks = max(window.most_blocks, output.num_blocks or served_model.ready.num_blocks)
        fewest = window.fewest_free_blocks
        window.fewest_free_blocks = min(
            output.num_free_blocks, output.num_free_blocks if fewest is None else fewest
        )
        _add_exits(window, output.exits)
        sample = sample_of(output, served_model.ready.depth)
        if sample is not None:
            window.cost.add(sample)

    def _window_of(self, request: Request) -> Window | None:
        """The window of the model that serves a request, or served it last."""
        if request.shard is None or request.served_model is None:
            return None
        return self._window(request.shard, request.served_model)

    def _window(self, shard: int, served_model: ServedModel) -> Window:
        key = (shard, served_model.target.name, served_model.ready.depth)
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = Window(start=self._unix_s())
        return window

    def _note_meter(self, shard: int, joules: float | None) -> None:
        if joules is None:
            self._metered.discard(shard)
        else:
            self._metered.add(shard)

    def _prune(self, shard: int, newest: int) -> None:
        """Forget models replaced so many swaps ago that none of their sequences can be left."""
        for key in [key for key in self._served_models if key[0] == shard and key[1] < newest - MAX_LIVING]:
            del self._served_models[key]

    def _forget(self, shard: int) -> None:
        self._metered.discard(shard)
        for key in [key for key in self._served_models if key[0] == shard]:
            del self._served_models[key]


def sample_of(output: StepOutput, depth: int) -> StepSample | None:
    """A step's sample for the cost fit; None if two models shared it, or nothing was computed.

    Tokens that end in no answer token count as prompt tokens, which run all loaded layers. A speculative step
    that made several tokens of each answer counts as its share of as many steps.
    """
    if output.older or not output.num_tokens:
        return None
    made = [sequence.tokens for sequence in output.outputs if sequence.tokens]
    layers = [token.exit_layer for tokens in made for token in tokens if not token.is_forced]
    if len(layers) < len(made):  # a grammar left nothing to draw where a layer had been run for it
        return None
    num_others = max(0, output.num_tokens - len(made))
    if len(layers) == len(made):
        deepest = depth if num_others else max(layers)
        return StepSample(deepest, output.num_tokens, sum(layers) + num_others * depth, output.step_ms)
    if num_others:
        return None
    num_steps = len(layers) / len(made)
    return StepSample(max(layers), len(made), sum(layers) / num_steps, output.step_ms / num_steps)


def _count_class(window: Window, request: Request) -> None:
    use = window.classes.setdefault(request.prompt_class, ClassUse())
    layers = [output.exit_layer for output in request.outputs if not output.is_forced]
    use.merge(ClassUse(1, len(layers), sum(layers)))


def _num_bytes(request: Request) -> int:
    """Number of bytes of an answer's text, but for what a grammar forced."""
    drawn = (output.id for output in request.outputs if not output.is_forced)
    pieces = map(request.tokenizer.piece, drawn)
    return sum(len(piece.raw) for piece in pieces if not piece.special)


def _add_older(window: Window, older: OlderReport, output: StepOutput) -> None:
    _add_step(window, older.num_tokens, older.ms, older.num_sequences)
    window.joules += (output.joules or 0.0) * _share(older.ms, output)
    _add_exits(window, older.exits)


def _add_step(window: Window, num_tokens: int, ms: float, num_sequences: int) -> None:
    window.step_ms += ms
    if num_tokens:  # else another model ran the step
        window.num_steps += 1
        window.batched += num_sequences
        window.computed_tokens += num_tokens


def _add_exits(window: Window, exits: ExitReport | None) -> None:
    if exits is not None:
        window.confidence_sum += exits.confidence_sum
        window.num_confident += exits.num_confident
        window.breaches += exits.breaches
        window.drafted += exits.drafted
        window.accepted += exits.accepted
        window.draft_saved_ms += exits.saved_ms


def _share(ms: float, output: StepOutput) -> float:
    """One model's share of a step's energy, by its share of the time."""
    total = output.step_ms + sum(older.ms for older in output.older)
    return ms / total if total else 0.0
