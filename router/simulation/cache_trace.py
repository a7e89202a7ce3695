"""Prompts of a trace in Mooncake's format, scaled down: a JSON object a line, `hash_ids` name shared blocks.

Also what an ideal cache finds of them: one that holds prompts alone, in the order of their arrival.
"""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec

TRACE_BLOCK_TOKENS = 512  # of one hash id


class Prompt(msgspec.Struct, frozen=True):
    """A prompt's token ids, and how many tokens are to answer it."""

    token_ids: list[int]
    num_answer_tokens: int


class _Row(msgspec.Struct):
    input_length: int
    output_length: int
    hash_ids: list[int]


def read_prompts(path: Path, scale: int, first_id: int, end_id: int) -> list[Prompt]:
    """The trace's prompts in order, with a `scale`-th of their tokens, ids from `first_id` up to `end_id`.

    Raises `ValueError` with a sentence that names the line, and OSError.
    """
    prompts = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = msgspec.json.decode(line, type=_Row)
        except msgspec.DecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}.") from None
        blocks = (_tokens(block, TRACE_BLOCK_TOKENS // scale, first_id, end_id) for block in row.hash_ids)
        token_ids = list(itertools.chain.from_iterable(blocks))[: max(1, row.input_length // scale)]
        if token_ids:
            prompts.append(Prompt(token_ids, max(1, row.output_length // scale)))
    return prompts


def num_found_ideally(prompts: Sequence[Prompt], num_blocks: int, block_size: int) -> int:
    """Tokens found in so many blocks, if nothing else needs them; the least recently used leave first."""
    cached: dict[int, None] = {}
    num_found = 0
    for prompt in prompts:
        keys, before = [], 0
        for end in range(block_size, len(prompt.token_ids) + 1, block_size):
            before = hash((before, *prompt.token_ids[end - block_size : end]))
            keys.append(before)
        most = (len(prompt.token_ids) - 1) // block_size
        num_found += block_size * sum(1 for _ in itertools.takewhile(cached.__contains__, keys[:most]))
        for key in reversed(keys):
            cached.pop(key, None)
            cached[key] = None
        while len(cached) > num_blocks:
            del cached[next(iter(cached))]
    return num_found


def _tokens(block: int, count: int, first_id: int, end_id: int) -> list[int]:
    draw = random.Random(block)
    return [draw.randrange(first_id, end_id) for _ in range(count)]
