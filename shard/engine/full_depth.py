"""The reference mode: every layer for every row. Also scores prompts in any mode."""

from collections.abc import Iterator
from itertools import accumulate

import msgspec
import torch

from shard.engine.sampler import Draw, Sampler
from shard.engine.sequence_table import Chunk
from shard.engine.step_inputs import BatchMaker
from shard.messages import Sampling, Score, TokenOutput
from shard.models.load import Decoder
from shard.ops.batch import KV, Batch

SCORED_ROWS = 128  # prompt positions whose logits are held at once


class Made(msgspec.Struct, frozen=True):
    """Full depth's output for one chunk."""

    tokens: list[TokenOutput]
    prompt: list[TokenOutput]
    scores: list[Score]


class FullDepth:
    """Runs chunks through all layers loaded."""

    def __init__(self, decoder: Decoder, pools: list[KV], make_batch: BatchMaker, sampler: Sampler):
        self._decoder = decoder
        self._pools = pools
        self._make_batch = make_batch
        self._sampler = sampler
        self.taps: dict[
            int, torch.Tensor | None
        ] = {}  # numbers of layers -> hidden states (T, H) behind them

    def run(self, chunks: list[Chunk]) -> list[Made]:
        """For each chunk the tokens it draws, and the scores it asked for; none while a prompt goes on."""
        batch = self._make_batch(chunks)
        hidden = self._run_layers(batch)
        starts = [0, *accumulate(chunk.num_tokens for chunk in chunks)]  # not read back from the device
        tokens = self._draw(chunks, hidden, starts)
        pieces = [hidden[start : starts[i + 1]] for i, start in enumerate(starts[:-1])]
        return [
            Made(tokens[i], self._score_prompt(chunk, pieces[i]), self.score_answer(chunk, pieces[i]))
            for i, chunk in enumerate(chunks)
        ]

    def run_layers(self, chunk: Chunk) -> torch.Tensor:
        """The hidden states (Q, H) of a chunk behind the last layer loaded."""
        return self._run_layers(self._make_batch([chunk]))

    def _run_layers(self, batch: Batch) -> torch.Tensor:
        hidden = self._decoder.embed(batch)
        for layer in range(self._decoder.depth):
            hidden = self._decoder.run_layer(layer, hidden, batch, self._pools[layer])
            if layer + 1 in self.taps:
                self.taps[layer + 1] = hidden
        return hidden

    def _draw(self, chunks: list[Chunk], hidden: torch.Tensor, starts: list[int]) -> list[list[TokenOutput]]:
        tokens: list[list[TokenOutput]] = [[] for _ in chunks]
        drawing = [(i, back) for i, chunk in enumerate(chunks) for back in range(chunk.num_draws - 1, -1, -1)]
        if not drawing:
            return tokens
        rows = torch.tensor([starts[i + 1] - 1 - back for i, back in drawing], device=hidden.device)
        logits = self._decoder.logits(hidden[rows])
        draws = [Draw(chunks[i].sequence, chunks[i].end - back, self._decoder.depth) for i, back in drawing]
        for (i, _), token in zip(drawing, self._sampler.choose(logits, draws), strict=True):
            tokens[i].append(token)
        return [chunk.standing(drawn) for chunk, drawn in zip(chunks, tokens, strict=True)]

    def _score_prompt(self, chunk: Chunk, hidden: torch.Tensor) -> list[TokenOutput]:
        """Log-probabilities of the prompt tokens that follow this chunk's, from hidden states (Q, H)."""
        sequence = chunk.sequence
        if not sequence.sampling.prompt_logprobs:
            return []
        scores: list[TokenOutput] = []
        for at, logits in self._slices(chunk, hidden, 0, sequence.num_prompt_tokens - 1):
            targets = sequence.token_ids[at + 1 : at + 1 + len(logits)]
            scores += self._sampler.score(logits, targets, sequence.sampling, self._decoder.depth)
        return scores

    def score_answer(self, chunk: Chunk, hidden: torch.Tensor) -> list[Score]:
        """Full depth's own draw at each answer token that follows this chunk's, from hidden states (Q, H)."""
        sequence, depth = chunk.sequence, self._decoder.depth
        if not sequence.scores:
            return []
        scores: list[Score] = []
        for at, logits in self._slices(
            chunk, hidden, sequence.num_prompt_tokens - 1, sequence.num_tokens - 1
        ):
            positions = range(at + 1, at + 1 + len(logits))
            drawn = self._sampler.choose(logits, [Draw(sequence, position, depth) for position in positions])
            standing = [sequence.token_ids[position] for position in positions]
            known = self._sampler.score(logits, standing, Sampling(), depth)
            scores += [Score(own.id, there.logprob) for own, there in zip(drawn, known, strict=True)]
        return scores

    def _slices(
        self, chunk: Chunk, hidden: torch.Tensor, first: int, end: int
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """(position, logits (N, V)) of the chunk's positions within first .. end, some at a time."""
        for at in range(max(chunk.start, first), min(chunk.end, end), SCORED_ROWS):
            until = min(at + SCORED_ROWS, chunk.end, end)
            yield at, self._decoder.logits(hidden[at - chunk.start : until - chunk.start])
