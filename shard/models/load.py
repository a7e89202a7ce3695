"""From a checkpoint folder to a decoder: the first L layers of it, or all."""

from pathlib import Path

from shard.model_folder import RANDOM_MARK
from shard.models.checkpoint import Checkpoint
from shard.models.gpt import GPT2, OPT, GptDecoder
from shard.models.llama import EMBEDDING, PREFIXES, LlamaDecoder
from shard.models.random_weights import RandomCheckpoint
from shard.models.rope import no_rope, rope_of
from shard.models.shape import GPT_LIKE, read_config, shape_of
from shard.models.shelf import Reader, source
from shard.models.weights import Weights

Decoder = LlamaDecoder | GptDecoder


def load_decoder(folder: Path, reader: Reader, num_layers: int | None, max_tokens: int) -> Decoder:
    """The first `num_layers` layers, on the reader's device, for up to `max_tokens` positions.

    Raises `UnsupportedModelError` and `CheckpointError`, each with one sentence for a person.
    """
    config = read_config(folder)
    shape = shape_of(config)
    depth = shape.num_layers if num_layers is None else num_layers
    if not 1 <= depth <= shape.num_layers:
        raise ValueError(f"num_layers must be between 1 and {shape.num_layers}, not {depth}")
    checkpoint = RandomCheckpoint(config) if (folder / RANDOM_MARK).exists() else Checkpoint(folder)
    if shape.family in GPT_LIKE:
        names = OPT if shape.family == "opt" else GPT2
        prefix = checkpoint.prefix(names.prefixes, names.embedding)
        weights = Weights(checkpoint, prefix, source(folder), reader)
        return GptDecoder(shape, no_rope(reader.device), reader.ops, weights, depth)
    weights = Weights(checkpoint, checkpoint.prefix(PREFIXES, EMBEDDING), source(folder), reader)
    rope = rope_of(config, shape.heads.dim, min(max_tokens, shape.max_positions), reader.device)
    return LlamaDecoder(shape, rope, reader.ops, weights, depth)
