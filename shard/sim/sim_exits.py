"""Exits of simulated tokens: pure functions of prompt and position, so that replays can be checked.

Each class of prompts owns an equal part of the vocabulary (chat the lower half, code the upper, say); a
prompt's class is that of most of its tokens. A token is *settled* at the first layer from which on all layers
agree with full depth; before that layer its confidence is low, though it is often right (HELIOS, section 3).
"""

from collections import Counter
from collections.abc import Iterable

import msgspec

from shard.engine.sequence import Sequence
from shard.messages import ExitReport, Mode, ShardConfig


class PromptClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exit statistics of one class of prompts."""

    settled: dict[int, float] = {}  # share of tokens by the layer that settles them; the rest need all
    agreement: float = 0.85  # share of unsettled tokens that agree with full depth all the same
    sure: float = 0.97  # confidence of settled tokens
    unsure: float = 0.4  # confidence of others

    def settled_at(self, draw: float, num_layers: int) -> int:
        """The layer that settles a token, for a draw in [0, 1)."""
        for layer, share in sorted(self.settled.items()):
            draw -= share
            if draw < 0:
                return min(layer, num_layers)
        return num_layers

    def confidence(self, is_settled: bool) -> float:
        return self.sure if is_settled else self.unsure


def class_of(prompt: list[int], vocab_size: int, num_classes: int) -> int:
    """The class of most tokens of a prompt; of equal ones the lower."""
    counts = Counter(min(token * num_classes // vocab_size, num_classes - 1) for token in prompt)
    return min(counts, key=lambda index: (-counts[index], index), default=0)


def mix(*numbers: int) -> int:
    """A well-mixed 64-bit hash of a few small numbers."""
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = (mixed ^ number) * 0xBF58476D1CE4E5B9 % 2**64
        mixed ^= mixed >> 31
    return mixed


def uniform(*numbers: int) -> float:
    """A hash in [0, 1) of a few small numbers."""
    return mix(*numbers) / 2**64


class Leave(msgspec.Struct, frozen=True):
    """How one token exits."""

    layer: int
    confidence: float | None = None
    is_right: bool = True  # agrees with full depth
    is_breach: bool = False  # left below its threshold


class SimExits:
    """Exits of tokens on a simulated shard of a given depth and mode."""

    def __init__(
        self, config: ShardConfig, classes: tuple[PromptClass, ...], num_layers: int, vocab_size: int
    ):
        self._mode = Mode(config.exit_mode)
        self._layers = config.exit_layers
        self._threshold = config.exit_threshold
        self._classes = classes
        self._num_layers = num_layers
        self._depth = min(config.num_layers or num_layers, num_layers)
        self._vocab_size = vocab_size

    @property
    def reports(self) -> bool:
        """True in modes whose shards report exits."""
        return self._mode != Mode.FULL

    @property
    def thresholds(self) -> dict[int, float]:
        """The thresholds of requests that give none, by exit layer."""
        if self._mode.is_lossless:
            return {}
        layers = self._layers or sorted({layer for known in self._classes for layer in known.settled})
        used = [self._depth] if self._mode == Mode.CAPPED else [at for at in layers if at < self._depth]
        return dict.fromkeys(used, self._threshold)

    def leaves(self, sequences: list[Sequence]) -> dict[int, Leave]:
        """By sequence id: how the next token exits."""
        leaves = {sequence.id: self._leave(sequence) for sequence in sequences}
        if self._mode != Mode.SYNCHRONIZED or not leaves:
            return leaves
        layer = max(leave.layer for leave in leaves.values())
        return {id: msgspec.structs.replace(leave, layer=layer) for id, leave in leaves.items()}

    def _leave(self, sequence: Sequence) -> Leave:
        votes = sequence.may_exit and sequence.num_new_tokens > 0
        if self._mode.is_lossless or (self._mode != Mode.CAPPED and not votes):
            return Leave(self._depth)
        known = self._class_of(sequence)
        at = (sequence.token_ids[-1], sequence.num_tokens)
        settled = known.settled_at(uniform(*at, 1), self._num_layers)
        is_lucky = uniform(*at, 2) < known.agreement
        threshold = self._threshold if sequence.exit_threshold is None else sequence.exit_threshold
        if self._mode == Mode.CAPPED:
            confidence = known.confidence(settled <= self._depth)
            is_right = settled <= self._depth or is_lucky
            return Leave(self._depth, confidence, is_right, confidence < threshold)
        for layer in self._layers or sorted(known.settled):
            confidence = known.confidence(settled <= layer)
            if layer < self._depth and confidence >= threshold:
                return Leave(layer, confidence, settled <= layer or is_lucky)
        return Leave(self._depth)

    def _class_of(self, sequence: Sequence) -> PromptClass:
        if sequence.runner_state is None:
            prompt = sequence.token_ids[: sequence.num_prompt_tokens]
            sequence.runner_state = class_of(prompt, self._vocab_size, len(self._classes))
        index: int = sequence.runner_state
        return self._classes[index]


def report_of(leaves: Iterable[Leave], step_ms: float) -> ExitReport:
    """A step's exits as a message."""
    leaves = list(leaves)
    known = [leave.confidence for leave in leaves if leave.confidence is not None]
    return ExitReport(
        tokens_by_exit=dict(sorted(Counter(leave.layer for leave in leaves).items())),
        confidence_sum=sum(known),
        num_confident=len(known),
        breaches=sum(leave.is_breach for leave in leaves),
        segment_ms=[step_ms],
    )
