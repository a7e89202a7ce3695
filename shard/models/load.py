"""Loads a decoder from a checkpoint folder: its first L layers, or all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shard.models.checkpoint import Checkpoint, CheckpointError
from shard.models.gguf_blocks import GgufBlocks
from shard.models.gpt import GPT2, OPT, GptDecoder
from shard.models.llama import EMBEDDING, LAYERS, PREFIXES, LlamaDecoder
from shard.models.manifest import check
from shard.models.model_folder import RANDOM_MARK, scale_block
from shard.models.random_weights import RandomCheckpoint
from shard.models.rope import no_rope, rope_of
from shard.models.shape import GPT_LIKE, read_config, refusals_of, shape_of
from shard.models.weight_cache import WeightReader, source
from shard.models.weights import Weights
from shard.quality.weight_format import GGUF

Decoder = LlamaDecoder | GptDecoder


def load_decoder(folder: Path, reader: WeightReader, num_layers: int | None, max_tokens: int) -> Decoder:
    """The first `num_layers` layers, on the reader's device, for up to `max_tokens` positions.

    Raises `UnsupportedModelError` or `CheckpointError`, each with one sentence for the user.
    """
    config = read_config(folder)
    shape = shape_of(config)
    depth = shape.num_layers if num_layers is None else num_layers
    if not 1 <= depth <= shape.num_layers:
        raise ValueError(f"num_layers must be between 1 and {shape.num_layers}, not {depth}")
    if shape.family in GPT_LIKE:
        rope = no_rope(reader.device)
    else:
        num_positions = min(max_tokens, shape.max_positions)
        rope = rope_of(config, shape.heads.dim, num_positions, reader.device)
    scale_block = _scale_block(config)
    checkpoint = open_checkpoint(folder, config)
    weights = Weights(*checkpoint, source(folder), reader, scale_block, _blocks(folder, reader))
    decoder = GptDecoder if shape.family in GPT_LIKE else LlamaDecoder
    return decoder(shape, rope, reader.ops, weights, depth)


class MissingLayers:
    """The layers of a model beyond those loaded, each read on demand and not cached."""

    def __init__(self, folder: Path, decoder: Decoder, make_reader: Callable[[], WeightReader]):
        self.indices = range(decoder.depth, decoder.shape.num_layers)
        self._folder = folder
        self._decoder = decoder
        self._make_reader = make_reader
        self._source = source(folder)
        self._opened: tuple[Checkpoint | RandomCheckpoint, str] | None = None
        self._scale_block: tuple[int, int] | None = None
        self._blocks: GgufBlocks | None = None

    def read(self, index: int) -> Decoder:
        """A model of one layer alone. Raises `CheckpointError`, also when the files have changed."""
        if source(self._folder) != self._source:
            raise CheckpointError(f"{self._folder} has changed since its first layers were loaded")
        if self._opened is None:
            config = read_config(self._folder)
            self._opened, self._scale_block = (
                open_checkpoint(self._folder, config),
                _scale_block(config),
            )
            self._blocks = _blocks(self._folder, self._make_reader())
        weights = Weights(*self._opened, self._source, self._make_reader(), self._scale_block, self._blocks)
        return self._decoder.only_layer(weights, f"{_layers_at(self._decoder.shape.family)}{index}.")


def open_checkpoint(folder: Path, config: Any) -> tuple[Checkpoint | RandomCheckpoint, str]:
    """A model's checkpoint, and the prefix of all its names. Raises `CheckpointError`, also for what
    `manifest.check` finds."""
    names = {"opt": OPT, "gpt2": GPT2}.get(config.model_type)
    prefixes, embedding = (PREFIXES, EMBEDDING) if names is None else (names.prefixes, names.embedding)
    if (folder / RANDOM_MARK).exists():
        random = RandomCheckpoint(config)
        return random, random.prefix(prefixes, embedding)
    checkpoint = Checkpoint(folder)
    prefix = checkpoint.prefix(prefixes, embedding)
    check(checkpoint, prefix, prefixes[0], config)
    return checkpoint, prefix


def _blocks(folder: Path, reader: WeightReader) -> GgufBlocks | None:
    return GgufBlocks(folder) if reader.weights == GGUF else None


def _scale_block(config: Any) -> tuple[int, int] | None:
    with refusals_of(config):
        return scale_block(getattr(config, "quantization_config", None))


def _layers_at(family: str) -> str:
    return {"opt": OPT.layers, "gpt2": GPT2.layers}.get(family, LAYERS)
