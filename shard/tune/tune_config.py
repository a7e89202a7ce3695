"""The configuration of a tuning."""

from pathlib import Path

import msgspec

from shard.tune.pipeline import Wanted


class Machine(msgspec.Struct, frozen=True):
    """Device, dtype and folders."""

    device: str
    dtype: str  # of weights, settled
    num_threads: int | None
    work: Path  # text, hidden states


class Text(msgspec.Struct, frozen=True):
    """Training text."""

    file: Path | None  # None: the model's own
    prompts: list[str]  # lists or files of prompts for the model's own text
    compared: list[str]  # other lists, used for evaluation only
    num_answers: int  # answers per list of prompts
    max_new_tokens: int
    seed: int


class Ask(msgspec.Struct, frozen=True):
    """The configuration of a whole tuning."""

    model: Path
    out: Path
    machine: Machine
    text: Text
    wanted: Wanted
