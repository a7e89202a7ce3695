"""The engine without a router: prompts in, answers out, in one process and on the caller's thread.

`helios tune`, `calibrate`, `score` and the engine's benchmarks run on it; it is also the Python API.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
from tokenizers import Tokenizer

from shard.cli import default_cache_dir
from shard.fetch.resolve import resolve
from shard.messages import (
    FinishReason,
    Grammar,
    NewSequence,
    Sampling,
    Score,
    SequenceOutput,
    ShardConfig,
    Step,
    StepOutput,
    TokenOutput,
    Work,
)
from shard.models.text import read_tokenizer
from shard.runner import ModelRunner

STEP_TOKENS = 512  # prompt tokens per step, besides one token of every decoding sequence
BATCH_SIZE = 64
GREEDY = Sampling()


class Answer(msgspec.Struct, frozen=True):
    """A prompt and its answer as tokens. `num_bytes` is the length of the answer's text."""

    number: int  # of the line, from 1
    prompt_token_ids: list[int]
    token_ids: list[int]
    num_bytes: int
    exit_layers: list[int]  # []: unknown
    sampling: Sampling


class Completion(msgspec.Struct, frozen=True):
    """The answer to one prompt."""

    text: str
    tokens: list[TokenOutput]  # id, log-probability, exit layer and confidence of each
    finish_reason: FinishReason


class Finished(msgspec.Struct, frozen=True):
    """A finished sequence as it was added, with its tokens or scores."""

    sequence: NewSequence
    tokens: list[TokenOutput]
    scores: list[Score]
    reason: FinishReason


class _Progress(msgspec.Struct):
    """A sequence's progress."""

    sequence: NewSequence
    attempt: int = 0
    num_computed_tokens: int = 0
    tokens: list[TokenOutput] = []
    scores: list[Score] = []

    @property
    def num_pending_tokens(self) -> int:
        return len(self.sequence.token_ids) + len(self.tokens) - self.num_computed_tokens

    def begin(self) -> NewSequence:
        """The message that starts the sequence; after a preemption with the tokens generated before."""
        self.num_computed_tokens = 0
        ids = self.sequence.token_ids + [token.id for token in self.tokens]
        return msgspec.structs.replace(self.sequence, attempt=self.attempt, token_ids=ids)

    def take(self, output: SequenceOutput) -> None:
        self.num_computed_tokens = output.num_computed_tokens
        self.tokens += output.tokens
        self.scores += output.scores

    def restart(self) -> None:
        self.attempt += 1
        self.scores = []


class OfflineEngine:
    """Iteration-level batching over one model, with at most `batch_size` sequences.

    `generate` answers prompts and `score` scores answers; both loop over `add` and `step`, which callers
    may use to form their own batches.
    """

    def __init__(self, runner: ModelRunner, batch_size: int = BATCH_SIZE, tokenizer: Tokenizer | None = None):
        self.runner = runner
        self.num_preemptions = 0
        self._batch_size = batch_size
        self._tokenizer = tokenizer
        self._waiting: deque[_Progress] = deque()
        self._running: dict[int, _Progress] = {}
        self._finished: list[Finished] = []
        self._num_steps = 0

    @classmethod
    def load(
        cls,
        model_id: str = "embedded",
        *,
        revision: str | None = None,
        cache_dir: Path | None = None,
        **settings: Any,
    ) -> Self:
        """Load a folder, .gguf file or hub id; `settings` are fields of `shard.messages.ShardConfig`.

        Raises `ModelUnusable`, `ValueError`, `OSError` or `MemoryError` with one sentence.
        """
        cache = cache_dir or default_cache_dir()
        folder = resolve(model_id, revision, cache)
        defaults = {"cache_dir": str(cache), "max_batch_size": BATCH_SIZE, "kv_cache_bytes": 1 << 30}
        config = msgspec.convert({"model": str(folder), **defaults, **settings}, ShardConfig)
        return cls(ModelRunner(config), config.max_batch_size, read_tokenizer(folder))

    def generate(
        self,
        prompts: Sequence[str | list[int]],
        max_new_tokens: int = 128,
        sampling: Sampling | Sequence[Sampling] = GREEDY,
        *,
        exact: bool = False,
        exit_threshold: float | None = None,
        grammar: str | None = None,
    ) -> list[Completion]:
        """Answer each prompt; completions are in the order of prompts.

        Prompts are texts or token ids; `sampling` is one for all or one for each. `grammar` says what answers
        must be, in llguidance's words. Raises `ValueError` for a prompt that leaves no room for an answer,
        and for a grammar that cannot be used.
        """
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        sequences = []
        for number, (prompt, own) in enumerate(zip(prompts, samplings, strict=True)):
            ids = self._encode(prompt)
            sequences.append(
                NewSequence(
                    number,
                    0,
                    ids,
                    len(ids),
                    max_new_tokens,
                    sampling=own,
                    exact=exact,
                    exit_threshold=exit_threshold,
                    grammar=None if grammar is None else Grammar(grammar),
                )
            )
        done = {finished.sequence.id: finished for finished in self.run(sequences)}
        return [
            Completion(self._decode(done[number].tokens), done[number].tokens, done[number].reason)
            for number in range(len(prompts))
        ]

    def score(self, answers: Iterable[Answer]) -> Iterator[tuple[Answer, list[Score]]]:
        """Full depth's scores of every token of given answers; yields each answer when complete."""
        by_number = {answer.number: answer for answer in answers}
        for finished in self.run(_to_be_scored(answer) for answer in by_number.values()):
            yield by_number[finished.sequence.id], finished.scores

    def run(self, sequences: Iterable[NewSequence]) -> Iterator[Finished]:
        """Add sequences and step until all are finished; yields each when finished, in any order."""
        for sequence in sequences:
            self.add(sequence)
        while self.has_unfinished:
            self.step()
            yield from self.take_finished()

    @property
    def has_unfinished(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, sequence: NewSequence) -> None:
        """Queue a sequence. Its id must not be in use; higher ids are preempted first.

        Raises `ValueError` when it is longer than the model or its KV cache allows, or has an id without an
        embedding in the model.
        """
        longest = self.runner.table.max_total_tokens
        if not sequence.token_ids or len(sequence.token_ids) + (sequence.max_new_tokens > 0) > longest:
            raise ValueError(
                f"Sequence {sequence.id} has {len(sequence.token_ids)} tokens; "
                f"between 1 and {longest}, with its answer, can be taken."
            )
        vocab_size = self.runner.decoder.shape.vocab_size
        if max(sequence.token_ids) >= vocab_size or min(sequence.token_ids) < 0:
            raise ValueError(
                f"Sequence {sequence.id} has token ids that are not between 0 and {vocab_size - 1}."
            )
        self._waiting.append(_Progress(sequence))

    def step(self, only: Collection[int] | None = None) -> StepOutput:
        """One iteration: admit waiting sequences, and run every sequence, or only those of `only`."""
        new = []
        while self._waiting and len(self._running) < self._batch_size:
            progress = self._waiting.popleft()
            self._running[progress.sequence.id] = progress
            new.append(progress.begin())
        self._num_steps += 1
        output = self.runner.run(Step(self._num_steps, self._work(only), new))
        for made in output.outputs:
            self._take(made)
        for id, _ in output.preempted:
            progress = self._running.pop(id)
            progress.restart()
            self._waiting.appendleft(progress)
        self.num_preemptions += len(output.preempted)
        return output

    def take_finished(self) -> list[Finished]:
        """Sequences finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def abort_all(self) -> None:
        """Drop every sequence, and free its blocks."""
        self._num_steps += 1
        drop = [(id, progress.attempt) for id, progress in self._running.items()]
        self.runner.run(Step(self._num_steps, [], drop=drop))
        self._running.clear()
        self._waiting.clear()

    def _work(self, only: Collection[int] | None) -> list[Work]:
        """A step's work: one token for decoding sequences, the rest for prompts, first come first served."""
        work, num_left = [], STEP_TOKENS
        for id, progress in self._running.items():
            if only is not None and id not in only:
                continue
            num_tokens = progress.num_pending_tokens
            if num_tokens > 1:
                num_tokens = min(num_tokens, num_left)
                num_left -= num_tokens
                if num_tokens == 0:
                    continue
            work.append(Work(id, progress.attempt, max(1, num_tokens)))
        return work

    def _take(self, made: SequenceOutput) -> None:
        progress = self._running[made.id]
        progress.take(made)
        if made.error:
            del self._running[made.id]
            raise ValueError(made.error)
        if made.finish is not None:
            del self._running[made.id]
            self._finished.append(Finished(progress.sequence, progress.tokens, progress.scores, made.finish))

    def _encode(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return list(self._text_tokenizer.encode(prompt).ids)
        return prompt

    def _decode(self, tokens: list[TokenOutput]) -> str:
        return str(self._tokenizer.decode([token.id for token in tokens])) if self._tokenizer else ""

    @property
    def _text_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ValueError("Text needs a tokenizer: give token ids, or give the engine a tokenizer.")
        return self._tokenizer


def _to_be_scored(answer: Answer) -> NewSequence:
    return NewSequence(
        answer.number,
        0,
        answer.prompt_token_ids + answer.token_ids,
        len(answer.prompt_token_ids),
        max_new_tokens=0,
        sampling=answer.sampling,
        scores=True,
    )
