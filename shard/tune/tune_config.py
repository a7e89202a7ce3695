"""What a person asks a tuning for."""

from pathlib import Path

import msgspec

from shard.tune.pipeline import Wanted


class Machine(msgspec.Struct, frozen=True):
    """What it runs on, and where it keeps things."""

    device: str
    dtype: str  # of weights and KV, settled
    num_threads: int | None
    work: Path  # text, hidden states


class Text(msgspec.Struct, frozen=True):
    """What it learns on."""

    file: Path | None  # None: the model's own
    prompts: list[str]  # lists or files, for its own text
    compared: list[str]  # others, on which it is only measured
    num_answers: int  # of each list; text of the model's own
    max_new_tokens: int
    seed: int


class Ask(msgspec.Struct, frozen=True):
    """A whole tuning, as a person asks for it."""

    model: Path
    out: Path
    machine: Machine
    text: Text
    wanted: Wanted
