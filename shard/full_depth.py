"""Every layer for every row: the reference mode, and how prompts are scored in any mode."""

import torch

from shard.batch import Chunk
from shard.batch_tensors import BatchMaker
from shard.messages import TokenOutput
from shard.models.load import Decoder
from shard.ops.batch import KV
from shard.sampler import Draw, Sampler

SCORED_ROWS = 128  # prompt positions whose logits are held at once


class FullDepth:
    """Runs chunks through all layers loaded."""

    def __init__(self, decoder: Decoder, pools: list[KV], make_batch: BatchMaker, sampler: Sampler):
        self._decoder = decoder
        self._pools = pools
        self._make_batch = make_batch
        self._sampler = sampler

    def run(self, chunks: list[Chunk]) -> tuple[list[list[TokenOutput]], list[list[TokenOutput]]]:
        """For each chunk its next token, or none while its prompt goes on; and its prompt's scores."""
        batch = self._make_batch(chunks)
        hidden = self._decoder.embed(batch)
        for layer in range(self._decoder.depth):
            hidden = self._decoder.run_layer(layer, hidden, batch, self._pools[layer])
        starts = batch.query_starts.tolist()
        scores = [self._score(chunk, hidden[starts[i] :]) for i, chunk in enumerate(chunks)]
        return self._draw(chunks, hidden, starts), scores

    def _draw(self, chunks: list[Chunk], hidden: torch.Tensor, starts: list[int]) -> list[list[TokenOutput]]:
        tokens: list[list[TokenOutput]] = [[] for _ in chunks]
        drawing = [i for i, chunk in enumerate(chunks) if chunk.samples]
        if not drawing:
            return tokens
        rows = torch.tensor([starts[i + 1] - 1 for i in drawing], device=hidden.device)
        logits = self._decoder.logits(hidden[rows])
        sequences = [chunks[i].sequence for i in drawing]
        draws = [Draw(sequence, sequence.num_tokens, self._decoder.depth) for sequence in sequences]
        for i, token in zip(drawing, self._sampler.choose(logits, draws), strict=True):
            tokens[i] = [token]
        return tokens

    def _score(self, chunk: Chunk, hidden: torch.Tensor) -> list[TokenOutput]:
        """Log-probabilities of the prompt tokens that follow this chunk's, from hidden states (Q.., H)."""
        sequence = chunk.sequence
        end = min(chunk.end, sequence.num_prompt_tokens - 1)
        if not sequence.sampling.prompt_logprobs:
            return []
        scores: list[TokenOutput] = []
        for at in range(chunk.start, end, SCORED_ROWS):
            until = min(at + SCORED_ROWS, end)
            logits = self._decoder.logits(hidden[at - chunk.start : until - chunk.start])
            targets = sequence.token_ids[at + 1 : until + 1]
            scores += self._sampler.score(logits, targets, sequence.sampling, self._decoder.depth)
        return scores
