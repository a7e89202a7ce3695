"""The training text as token ids: prompts with answers, in atomically written files."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np


class Passage(msgspec.Struct, frozen=True):
    """One text. Exits learn what follows the first `num_prompt_tokens`."""

    token_ids: list[int]
    num_prompt_tokens: int
    held_out: bool = False
    sampled: bool = False  # drawn at a temperature, not greedily

    @property
    def num_answer_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens


def save_passages(path: Path, passages: Sequence[Passage]) -> None:
    """Write one file atomically."""
    temporary = path.with_suffix(".partial")
    with temporary.open("wb") as file:
        np.savez(
            file,
            token_ids=np.concatenate([np.asarray(passage.token_ids, dtype=np.int32) for passage in passages]),
            num_tokens=np.asarray([len(passage.token_ids) for passage in passages], dtype=np.int32),
            num_prompt_tokens=np.asarray([passage.num_prompt_tokens for passage in passages], dtype=np.int32),
            held_out=np.asarray([passage.held_out for passage in passages]),
            sampled=np.asarray([passage.sampled for passage in passages]),
        )
    os.replace(temporary, path)


def load_passages(path: Path) -> list[Passage]:
    """Read what `save_passages` wrote."""
    with np.load(path) as arrays:
        ends = np.cumsum(arrays["num_tokens"])
        pieces = np.split(arrays["token_ids"], ends[:-1])
        return [
            Passage(piece.tolist(), int(num_prompt), bool(held_out), bool(sampled))
            for piece, num_prompt, held_out, sampled in zip(
                pieces, arrays["num_prompt_tokens"], arrays["held_out"], arrays["sampled"], strict=True
            )
        ]


def digest(passages: Sequence[Passage]) -> str:
    """Digest of a text by its tokens."""
    state = hashlib.sha256()
    for passage in passages:
        state.update(np.asarray([passage.num_prompt_tokens, *passage.token_ids], dtype=np.int32).tobytes())
    return state.hexdigest()[:16]
