"""Texts and their hidden states, cached in the work folder."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from shard.messages import ShardConfig
from shard.models.checkpoint import digest as model_digest
from shard.models.shape import Shape, read_config, shape_of
from shard.quality.weight_format import NONE
from shard.runner import ModelRunner
from shard.tune.batches import Source
from shard.tune.given_text import read_text
from shard.tune.preflight import check_disk
from shard.tune.progress import Progress
from shard.tune.prompts import read_prompts
from shard.tune.self_text import AnswerPlan, generate
from shard.tune.states import cache_bytes, open_or_make
from shard.tune.text import Passage, digest
from shard.tune.tune_config import Ask

PROBING_OF = 16  # one in this many passages trains probes, not heads
KV_BYTES = 2 << 30  # for generating text
MAX_TOKENS = 4096  # of a passage, prompt and answer


def make_sources(ask: Ask, shape: Shape, progress: Progress) -> list[Source]:
    """Texts and their hidden states, made unless the work folder has them."""
    runner = _Once(lambda: ModelRunner(_config(ask, shape)))
    texts = _texts(ask, shape, runner, progress)
    return [_source(ask, name, passages, runner, progress) for name, passages in texts.items()]


def make_texts(ask: Ask, shape: Shape, progress: Progress) -> dict[str, list[Passage]]:
    """Only the texts, by name."""
    return _texts(ask, shape, _Once(lambda: ModelRunner(_config(ask, shape))), progress)


def _texts(
    ask: Ask, shape: Shape, runner: Callable[[], ModelRunner], progress: Progress
) -> dict[str, list[Passage]]:
    if ask.text.file is not None:
        return {ask.text.file.stem: read_text(ask.model, ask.text.file, shape.max_positions)}
    names = dict.fromkeys([*ask.text.prompts, *ask.text.compared])
    return {_stem(name): _own_text(ask, name, runner, progress) for name in names}


def _own_text(ask: Ask, name: str, runner: Callable[[], ModelRunner], progress: Progress) -> list[Passage]:
    """The model's answers to one list of prompts."""
    text = ask.text
    max_tokens = min(MAX_TOKENS, shape_of(read_config(ask.model)).max_positions)
    prompts = read_prompts(name)
    wanted = AnswerPlan(prompts, text.num_answers, text.max_new_tokens, max_tokens, seed=text.seed)
    key = msgspec.json.encode([model_digest(ask.model), ask.machine.dtype, wanted])
    folder = ask.machine.work / "text" / f"{_stem(name)}-{_named(key)}"
    passages: list[Passage] = []
    for wave in generate(runner, ask.model, wanted, folder):
        passages += wave
        progress.tell(f"text of {_stem(name)}", len(passages), text.num_answers)
    return [passage for passage in passages if passage.num_answer_tokens > 0]


def _source(
    ask: Ask, name: str, passages: list[Passage], runner: Callable[[], ModelRunner], progress: Progress
) -> Source:
    """A text with its hidden states; one in `PROBING_OF` training passages is kept for the probes."""
    shape = shape_of(read_config(ask.model))
    layers = [*ask.wanted.spec.layers, shape.num_layers]
    key = f"{model_digest(ask.model)} {ask.machine.dtype} {layers} {digest(passages)}"
    folder = ask.machine.work / "states" / f"{name}-{_named(key.encode())}"
    check_disk(ask.machine.work, cache_bytes(passages, len(layers), shape.hidden_size), folder)

    def tell(done: int) -> None:
        progress.tell(f"states of {name}", done, len(passages))

    cache = open_or_make(folder, key, passages, layers, runner, tell)
    held_out = [i for i, passage in enumerate(passages) if passage.held_out]
    rest = [i for i, passage in enumerate(passages) if not passage.held_out]
    learns = ask.text.file is not None or name in map(_stem, ask.text.prompts)
    return Source(
        name,
        cache,
        [i for n, i in enumerate(rest) if n % PROBING_OF] if learns else [],
        rest[::PROBING_OF] if learns else [],
        held_out or rest,
        frozenset(i for i, passage in enumerate(passages) if passage.sampled),
        passages,
    )


def _config(ask: Ask, shape: Shape) -> ShardConfig:
    """Configuration of the model at full depth, for generating and reading text."""
    return ShardConfig(
        model=str(ask.model),
        device=ask.machine.device,
        dtype=ask.machine.dtype,
        quantize=NONE,
        kv_cache_bytes=KV_BYTES,
        max_total_tokens=min(shape.max_positions, MAX_TOKENS),
        max_batch_size=512,
        max_batch_tokens=4096,
        num_threads=ask.machine.num_threads,
    )


class _Once:
    """A runner made on first use."""

    def __init__(self, make: Callable[[], ModelRunner]):
        self._make = make
        self._made: ModelRunner | None = None

    def __call__(self) -> ModelRunner:
        if self._made is None:
            self._made = self._make()
        return self._made


def _named(key: bytes) -> str:
    """A short file name for `key`."""
    return hashlib.sha256(key).hexdigest()[:12]


def _stem(name: str) -> str:
    """The name of a list of prompts without its folder."""
    return Path(name).stem
