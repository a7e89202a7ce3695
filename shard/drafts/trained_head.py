"""A trained draft head in the engine: one decoder layer over the model's hidden states and a token (EAGLE-3).

At position q it reads the states that the model computed at q - 1, at some depths, and the token at q; from
them follow its key and value at q, and a guess at the token at q + 1. Where the model has computed nothing
yet, its own output at q - 1 takes the states' place. Its layer is one more of the decoder, with a pool in the
model's blocks. Li et al. 2025, "EAGLE-3"; `shard/tune/draft_head.py` is the same in training.
"""

from pathlib import Path

import torch
from torch.nn import functional

from shard.drafts.head_file import FILE, HeadDescription, HeadFileError, check_description, read_description
from shard.exits.exit_heads import Vocabulary
from shard.exits.rerank_head import RerankHead
from shard.models.checkpoint import Checkpoint, CheckpointError
from shard.models.load import Decoder
from shard.models.weight_cache import WeightReader, source
from shard.models.weights import Weights
from shard.ops.batch import KV, Batch


class TrainedHead:
    """The weights of a head, and its products."""

    def __init__(self, folder: Path, decoder: Decoder, reader: WeightReader):
        self.description = read_description(folder)
        shape = decoder.shape
        check_description(self.description, shape)
        self._decoder = decoder
        self._ops = reader.ops
        self._eps = shape.norm_eps
        self._ones = reader.ops.widened(reader.empty.new_ones(shape.hidden_size))
        width = shape.hidden_size
        try:
            checkpoint = Checkpoint(folder / FILE)
            weights = Weights(checkpoint, "", source(folder / FILE), reader)
            self._fuse = weights.matrix("fuse.weight", (width, (self.num_states + 1) * width))
            self._again = weights.matrix("again.weight", (width, 2 * width))
            self._vocabulary: Vocabulary = decoder.head
            if self.description.rerank is not None:
                rank = checkpoint.shapes.get("low_rank.weight", (0,))[0]
                self._vocabulary = _reranking(folder, self.description, weights, rank, decoder, reader)
            self.block = decoder.add_layer(weights, "block.")
        except CheckpointError as error:
            raise HeadFileError(f"the draft head does not fit the model: {error}") from None

    @property
    def num_states(self) -> int:
        """Number of depths at which it reads hidden states."""
        return len(self.description.layers)

    def nothing_before(self) -> torch.Tensor:
        """States (1, D, H) of the position before the first, and of those that nobody has computed."""
        return self._ones.new_zeros(1, self.num_states, len(self._ones))

    def fused(self, states: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Input of its layer (N, H) at positions with tokens (N,), from states (N, D, H) one before each."""
        return self._fuse(torch.cat((self._unit(states).flatten(1), self._embedded(token_ids)), dim=1))

    def fused_again(self, before: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """The same from its own outputs (N, H) one before each."""
        return self._again(torch.cat((self._unit(before), self._embedded(token_ids)), dim=1))

    def write(self, hidden: torch.Tensor, batch: Batch, pools: list[KV]) -> torch.Tensor:
        """Write the keys and values of inputs (T, H); their queries (T, Hq, D)."""
        return self._decoder.project(self.block, hidden, batch, pools[self.block])

    def read(
        self, queries: torch.Tensor, hidden: torch.Tensor, batch: Batch, pools: list[KV]
    ) -> torch.Tensor:
        """Outputs (T, H) of inputs, by their queries."""
        return self._decoder.mix(self.block, queries, hidden, batch, pools[self.block])

    def logits(self, out: torch.Tensor) -> torch.Tensor:
        """Logits (N, V) of the next tokens, from outputs (N, H)."""
        return self._vocabulary(self._decoder.normed(out))

    def _unit(self, hidden: torch.Tensor) -> torch.Tensor:
        """Each vector (…, H) divided by its root mean square."""
        return self._ops.rms_norm(hidden, self._ones, self._eps)

    def _embedded(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self._unit(self._ops.widened(functional.embedding(token_ids, self._decoder.embedding)))


def _reranking(
    folder: Path, head: HeadDescription, weights: Weights, rank: int, decoder: Decoder, reader: WeightReader
) -> RerankHead:
    """Candidates by a product of low rank, on which the LM head decides."""
    width, vocab_size = decoder.shape.hidden_size, decoder.shape.vocab_size
    shared = folder / head.vocabulary
    if Path(head.vocabulary).is_absolute() or shared.suffix != ".safetensors" or not shared.is_file():
        raise HeadFileError(f"there is no {shared}, which the draft head names as its vocabulary")
    vocabulary = Weights(Checkpoint(shared), "", source(shared), reader)
    return RerankHead(
        reader.ops,
        weights.matrix("low_rank.weight", (rank, width)),
        vocabulary.matrix("vocabulary.weight", (vocab_size, rank)),
        decoder.head_rows(),
        head.rerank or 1,
        weights.matrix("rerank.weight", (width, width)),
    )
