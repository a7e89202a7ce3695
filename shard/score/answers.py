"""Reads answers to score from a file, one JSON object per line. Knows no model.

A line has a prompt (`prompt`, or `prompt_token_ids`) and an answer (`answer`: text or token ids), and may
have the answer's `exit_layers` and its `sampling`. The load generator's names for an answer, `text` and
`token_ids`, work too; its lines that are not `ok` are skipped.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from shard.messages import Sampling
from shard.offline import Answer


class AnswersUnusable(Exception):
    """A file that cannot be scored. The message is one sentence that names the line."""


class Line(msgspec.Struct, frozen=True):
    """One line. Unknown fields are ignored."""

    prompt: str | None = None
    prompt_token_ids: list[int] | None = None
    answer: str | list[int] | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    exit_layers: list[int] = []
    sampling: Sampling = Sampling()
    outcome: str = "ok"


class Bounds(msgspec.Struct, frozen=True):
    """Limits of a model."""

    vocab_size: int
    max_total_tokens: int


def read_answers(file: Path, tokenizer: Tokenizer, bounds: Bounds) -> list[Answer]:
    """All answers of a file. Raises `AnswersUnusable`."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise AnswersUnusable(f"{file} cannot be read: {error.strerror}.") from None
    answers = [answer for number, line in _lines(file, lines) if (answer := _answer(number, line, tokenizer))]
    for answer in answers:
        _check(answer, bounds)
    if not answers:
        raise AnswersUnusable(f"{file} holds no answers.")
    return answers


def _lines(file: Path, lines: list[bytes]) -> Iterator[tuple[int, Line]]:
    for number, text in enumerate(lines, 1):
        if text.strip():
            try:
                yield number, msgspec.json.decode(text, type=Line)
            except msgspec.DecodeError as error:
                raise AnswersUnusable(f"Line {number} of {file}: {error}.") from None


def _answer(number: int, line: Line, tokenizer: Tokenizer) -> Answer | None:
    """The answer of a line; None if there is none to score."""
    if line.outcome != "ok":
        return None
    prompt = line.prompt_token_ids
    if prompt is None and line.prompt is not None:
        prompt = tokenizer.encode(line.prompt).ids
    if not prompt:
        raise AnswersUnusable(f"Line {number} has no prompt: give `prompt` or `prompt_token_ids`.")
    given = next(
        (field for field in (line.answer, line.token_ids or None, line.text) if field is not None), None
    )
    if given is None:
        raise AnswersUnusable(f"Line {number} has no answer: give `answer`, text or token ids.")
    ids = tokenizer.encode(given, add_special_tokens=False).ids if isinstance(given, str) else given
    text = given if isinstance(given, str) else tokenizer.decode(given)
    if not ids:
        return None
    return Answer(number, prompt, ids, len(text.encode()), line.exit_layers, line.sampling)


def _check(answer: Answer, bounds: Bounds) -> None:
    number, num_tokens = answer.number, len(answer.token_ids)
    if answer.exit_layers and len(answer.exit_layers) != num_tokens:
        raise AnswersUnusable(
            f"Line {number} has {len(answer.exit_layers)} exit_layers for {num_tokens} tokens: "
            "give the answer as the token ids that were generated."
        )
    wrong = [id for id in answer.prompt_token_ids + answer.token_ids if not 0 <= id < bounds.vocab_size]
    if wrong:
        raise AnswersUnusable(
            f"Line {number} holds token {wrong[0]}, but the model's are from 0 to {bounds.vocab_size - 1}."
        )
    total = len(answer.prompt_token_ids) + num_tokens
    if total > bounds.max_total_tokens:
        raise AnswersUnusable(
            f"Line {number} has {total} tokens, prompt and answer together; "
            f"at most {bounds.max_total_tokens} fit."
        )
