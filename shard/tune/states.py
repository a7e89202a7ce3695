"""Training data cached on disk: hidden states at exits, and full depth's likeliest next tokens.

The arrays are memory-mapped, so that memory stays bounded for any amount of text. The engine's own decoder
computes them: an exit is trained on exactly what it will read.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

from shard.engine.sequence_table import lay_out
from shard.engine.step_inputs import BatchMaker
from shard.messages import NewSequence
from shard.models.load import Decoder
from shard.runner import ModelRunner
from shard.tune.text import Passage

TOP_TOKENS = 16  # likeliest tokens kept at each position; the rest is one mass
PASS_TOKENS = 2048  # tokens in one pass through the layers
LOGIT_ROWS = 256


class Index(msgspec.Struct, frozen=True):
    """Index of a cache; written last, so that it marks a complete cache."""

    key: str  # of model, dtype, layers and text
    layers: list[int]  # boundaries, including full depth
    hidden_size: int
    num_tokens: list[int]  # by passage, in the order of the text
    num_prompt_tokens: list[int]


class StateCache:
    """Passages as tensors. One of n tokens has states at positions 0 .. n - 2: the last predicts nothing.

    Targets are at the positions that predict answer tokens: num_prompt_tokens - 1 .. n - 2.
    """

    def __init__(self, folder: Path, index: Index, mode: str = "r"):
        self.index = index
        self._rows = np.concatenate([[0], np.cumsum([n - 1 for n in index.num_tokens])])
        answers = [n - p for n, p in zip(index.num_tokens, index.num_prompt_tokens, strict=True)]
        self._targets = np.concatenate([[0], np.cumsum(answers)])
        num_rows, num_targets = int(self._rows[-1]), int(self._targets[-1])

        def open_array(name: str, dtype: str, *shape: int) -> np.ndarray:
            return np.lib.format.open_memmap(
                folder / f"{name}.npy", mode, dtype=dtype, shape=shape if mode == "w+" else None
            )

        self._states = {
            layer: open_array(f"layer-{layer}", "int16", num_rows, index.hidden_size)
            for layer in index.layers
        }
        self._top_ids = open_array("top-ids", "int32", num_targets, TOP_TOKENS)
        self._top_logprobs = open_array("top-logprobs", "float32", num_targets, TOP_TOKENS)

    def __len__(self) -> int:
        return len(self.index.num_tokens)

    def num_targets(self, passage: int) -> int:
        return int(self._targets[passage + 1] - self._targets[passage])

    def num_positions(self, passage: int) -> int:
        return int(self._rows[passage + 1] - self._rows[passage])

    def states(self, layer: int, passage: int) -> torch.Tensor:
        """Hidden states before `layer`, (n - 1, H) bfloat16."""
        part = self._states[layer][self._rows[passage] : self._rows[passage + 1]]
        return torch.from_numpy(part.copy()).view(torch.bfloat16)

    def targets(self, passage: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Full depth's likeliest tokens, best first, and their log-probabilities, each (answer, K)."""
        span = slice(self._targets[passage], self._targets[passage + 1])
        return (
            torch.from_numpy(self._top_ids[span].astype(np.int64)),
            torch.from_numpy(self._top_logprobs[span].copy()),
        )

    def put(
        self, passage: int, states: dict[int, torch.Tensor], top: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        """Write one passage."""
        rows = slice(self._rows[passage], self._rows[passage + 1])
        for layer, hidden in states.items():
            self._states[layer][rows] = hidden.bfloat16().cpu().view(torch.int16).numpy()
        span = slice(self._targets[passage], self._targets[passage + 1])
        self._top_logprobs[span] = top[0].cpu().numpy()
        self._top_ids[span] = top[1].cpu().numpy()


def open_or_make(
    folder: Path,
    key: str,
    passages: Sequence[Passage],
    layers: list[int],
    runner: Callable[[], ModelRunner],
    tell: Callable[[int], None],
) -> StateCache:
    """The cache of passages at some boundaries, made unless complete."""
    path = folder / "index.json"
    if path.exists():
        index = msgspec.json.decode(path.read_bytes(), type=Index)
        if index.key == key:
            return StateCache(folder, index)
    folder.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    teacher = runner()
    index = Index(
        key,
        layers,
        teacher.decoder.shape.hidden_size,
        [len(passage.token_ids) for passage in passages],
        [passage.num_prompt_tokens for passage in passages],
    )
    cache = StateCache(folder, index, "w+")
    _fill(cache, passages, teacher, tell)
    temporary = path.with_suffix(".partial")
    temporary.write_bytes(msgspec.json.encode(index))
    os.replace(temporary, path)
    return cache


def cache_bytes(passages: Sequence[Passage], num_layers: int, hidden_size: int) -> int:
    """Disk space of a cache of these passages."""
    rows = sum(len(passage.token_ids) - 1 for passage in passages)
    targets = sum(passage.num_answer_tokens for passage in passages)
    return rows * num_layers * hidden_size * 2 + targets * TOP_TOKENS * 8


@torch.inference_mode()
def _fill(
    cache: StateCache, passages: Sequence[Passage], teacher: ModelRunner, tell: Callable[[int], None]
) -> None:
    group: list[int] = []
    for number in range(len(passages)):
        group.append(number)
        if sum(len(passages[i].token_ids) for i in group) >= PASS_TOKENS or number == len(passages) - 1:
            _run(cache, group, passages, teacher)
            group = []
            tell(number + 1)


def _run(cache: StateCache, group: list[int], passages: Sequence[Passage], teacher: ModelRunner) -> None:
    """Run several passages in one pass through the layers."""
    chunks = lay_out((_but_the_last(i, passages[i]) for i in group), teacher.table.block_size)
    decoder, pools = teacher.decoder, teacher.kv_cache.layers
    batch = BatchMaker(teacher.table.block_size, decoder.embedding.device)(chunks)
    hidden = decoder.embed(batch)
    states: dict[int, torch.Tensor] = {}
    for layer in range(decoder.depth):
        if layer in cache.index.layers:
            states[layer] = hidden.clone()
        hidden = decoder.run_layer(layer, hidden, batch, pools[layer])
    states[decoder.depth] = hidden
    start = 0
    for i, chunk in zip(group, chunks, strict=True):
        own = {layer: states[layer][start : start + chunk.num_tokens] for layer in cache.index.layers}
        first = passages[i].num_prompt_tokens - 1
        cache.put(i, own, _top(decoder, hidden[start + first : start + chunk.num_tokens]))
        start += chunk.num_tokens


def _but_the_last(number: int, passage: Passage) -> NewSequence:
    """A sequence of all tokens but the last, which predicts nothing."""
    ids = passage.token_ids[:-1]
    return NewSequence(number, 0, ids, len(ids), 0)


def _top(decoder: Decoder, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities, ids) of the likeliest tokens of hidden states (N, H), each (N, K)."""
    parts = []
    for rows in hidden.split(LOGIT_ROWS):
        logits = decoder.logits(rows).float()
        top = logits.topk(min(TOP_TOKENS, logits.shape[-1]), dim=-1)
        parts.append((top.values - logits.logsumexp(-1, keepdim=True), top.indices))
    return torch.cat([values for values, _ in parts]), torch.cat([ids for _, ids in parts])
