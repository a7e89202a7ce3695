"""The interface of drafters, and what crosses it.

A drafter guesses how sequences go on. Whatever it guesses, the pass that follows draws the model's own token
at each position and keeps guesses only while they are equal: a drafter changes speed, never text. It is
called on the thread of the steps. One that raises is switched off, and the step goes on without its drafts.
"""

from typing import Protocol

import msgspec
import torch

from shard.engine.sequence import Sequence
from shard.messages import DrafterKind

NUM_GRADES = 16


class Draft(msgspec.Struct):
    """Guesses for one sequence, next token first.

    `grades` has a number below `NUM_GRADES` for each guess. A grade means nothing but this: guesses of one
    drafter and one grade are right about equally often, given that those before them were. How often is
    measured. A head may grade by its own probability, a search by the length of what it matched.
    """

    token_ids: list[int] = []
    grades: list[int] = []

    def __len__(self) -> int:
        return len(self.token_ids)

    def cut(self, length: int) -> None:
        """Keep the first `length` guesses."""
        del self.token_ids[length:], self.grades[length:]


class Passed(msgspec.Struct, frozen=True):
    """What a pass computed of one sequence and keeps: positions `start .. start + num_tokens`.

    `token_ids` are the tokens at these positions, and the one behind them if it is known: of a prompt's part
    its next token, else the one just drawn. Drafts that were refused are not among them. `states` are the
    hidden states (num_tokens, H) behind as many layers as each of `Drafter.layers` says; views of the pass's
    tensors, which a drafter that keeps them copies.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    token_ids: list[int]
    states: list[torch.Tensor]


class Drafter(Protocol):
    """Guesses how sequences go on. What it keeps of a sequence goes with `retire`."""

    @property
    def name(self) -> DrafterKind: ...

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of layers behind which it wants hidden states; (): none."""
        ...

    @property
    def is_free(self) -> bool:
        """A guess costs next to nothing beside a pass, so that it is asked without weighing its time."""
        ...

    def propose(self, sequences: list[Sequence], max_lengths: list[int]) -> list[Draft]:
        """A draft for each sequence, of at most so many tokens; an empty one where it has no idea.

        A sequence's `token_ids` are all known, and its last one is not computed yet. Blocks are reserved
        for `max_lengths` further tokens. Leaves the sequences as they are.
        """
        ...

    def note(self, passed: list[Passed]) -> None:
        """Learn what a pass computed, of prompts and answers; of scored sequences nothing is told."""
        ...

    def retire(self, sequence: Sequence) -> None:
        """A sequence has ended, was preempted or dropped; it comes again, if so, as another object."""
        ...

    def clear(self, running: list[Sequence]) -> None:
        """What sequences, those that run on among them, have said so far helps no other any more."""
        ...
