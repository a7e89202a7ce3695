"""Tensors meet on one device: whole steps on CUDA tensors that hold no numbers.

torch's fake tensors know shapes, types and devices, and refuse what a GPU would refuse: no GPU is needed, but
a build of torch with CUDA. Where numbers are read back, made-up ones come.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from shard.engine.step_inputs import BatchMaker
from shard.messages import Sampling
from shard.models import load
from shard.models.checkpoint import Checkpoint
from shard.runner import ModelRunner
from tests.shard.driving import generate, make_runner, scored
from tests.shard.exit_files import change_tensors, quantise, write_exits

pytestmark = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="this torch was built without CUDA"
)

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.7, seed=3, num_top_tokens=2),
    Sampling(temperature=1.0, top_k=5, top_p=0.9, repetition_penalty=1.2),
    Sampling(
        typical_p=0.8, temperature=0.5, frequency_penalty=0.1, presence_penalty=0.2, prompt_logprobs=True
    ),
]
RULED = [
    Sampling(logit_bias={5: 1.0}, min_tokens=2, stop_token_ids=[9]),
    Sampling(temperature=1.0, min_p=0.1, allowed_token_ids=[3, 4, 5, 6]),
    Sampling(bad_token_ids=[[7, 7], [3]], num_top_tokens=1),
    Sampling(temperature=0.4, top_k=2, typical_p=0.5, logit_bias={3: -2.0}),
]
PROMPTS = [[5, 6, 7], [8] * 40, [9] * 20, [10] * 25]
EXITING = [
    {"exit_mode": mode, "exit_criterion": criterion, "kv_fill": fill, "exit_deferral": fill == "project"}
    for mode in ("per_row", "synchronized")
    for criterion, fill in (
        ("softmax", "recompute"),
        ("margin", "project"),
        ("similarity", "project"),
        ("classifier", "recompute"),
    )
]
OTHERS = [{"exit_mode": "speculative"}] + [
    {"exit_mode": "capped", "num_layers": 2, "exit_criterion": criterion}
    for criterion in ("softmax", "similarity")
]


class Event:
    """A CUDA event without work."""

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self, stream: None) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, later: "Event") -> float:
        return 1.0


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors asked for are fakes, on a GPU of the Hopper generation if they are to be on one."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    known: dict[int, list[Any]] = {}  # what was put into some of them
    read, make, open_checkpoint = Checkpoint.read, BatchMaker.__call__, load.open_checkpoint

    def reading(self: Checkpoint, *given: Any) -> torch.Tensor:
        with unset_fake_temporarily():
            tensor = read(self, *given)
        return mode.from_tensor(tensor)

    def opening(folder: Path, config: Any) -> Any:
        with unset_fake_temporarily():
            return open_checkpoint(folder, config)

    def making(self: BatchMaker, chunks: list[Any]) -> Any:
        batch = make(self, chunks)
        starts = [sum(chunk.num_tokens for chunk in chunks[:i]) for i in range(len(chunks) + 1)]
        known[id(batch.query_starts)], known[id(batch.num_keys)] = starts, [chunk.end for chunk in chunks]
        kept.append(batch)
        return batch

    def telling(self: FakeTensor) -> Any:
        if id(self) in known:
            return known[id(self)]
        value = 0.5 if self.is_floating_point() else 7
        row = [value] * self.shape[-1]
        return row if self.ndim == 1 else [row] * len(self)

    kept: list[Any] = []  # so that ids stay theirs
    monkeypatch.setattr(Checkpoint, "read", reading)
    monkeypatch.setattr(load, "open_checkpoint", opening)
    monkeypatch.setattr(BatchMaker, "__call__", making)
    monkeypatch.setattr("shard.models.weights.check_finite", lambda *_: None)  # of numbers on the host
    monkeypatch.setattr(FakeTensor, "tolist", telling)
    monkeypatch.setattr(FakeTensorMode, "may_turn_const", lambda *_: False)  # would be copied to a real GPU
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    with mode:
        yield


def make(folder: Path, **config: Any) -> ModelRunner:
    settings = {"device": "cuda", "dtype": "bfloat16", "block_size": 256, "kv_cache_bytes": 1 << 26} | config
    return make_runner(
        folder, exit_fallback=False, exit_threshold=0.6, **settings
    )  # under the numbers made up


def run(runner: ModelRunner) -> None:
    """Prompts in chunks, then answers: nobody is sure enough to leave, then everybody is."""
    for exit_threshold, asked in ((None, SAMPLINGS), (0.4, RULED)):
        made = generate(runner, PROMPTS, 3, asked, chunk=30, exit_threshold=exit_threshold)
        assert all(len(each.ids) == 3 for each in made)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_family(every_tiny_model: Path, fake_cuda, dtype: str):
    run(make(every_tiny_model, dtype=dtype))


@pytest.mark.parametrize(
    "config", [*EXITING, *OTHERS], ids=lambda config: "-".join(map(str, config.values()))
)
def test_every_mode(tiny_model, tmp_path: Path, config: dict[str, Any], request):
    head = "mlp" if config.get("exit_criterion") == "softmax" else "block"
    model = tiny_model("qwen3")
    exits = write_exits(tmp_path / "exits", model, [1, 2], head, rank=8, rerank=4, probe_floor=0.1)
    change_tensors(exits / "exits.safetensors", quantise)
    request.getfixturevalue("fake_cuda")
    run(make(model, exits=str(exits), **config))


def test_scores_through_layers_that_are_missing(tiny_model, request):
    model = tiny_model("llama")
    request.getfixturevalue("fake_cuda")  # once the model is there
    runner = make(model, num_layers=2, exit_mode="capped", exit_layers=[2])
    assert len(scored(runner, PROMPTS[1], PROMPTS[2])) == len(PROMPTS[2])
