"""LayerSkip (Elhoushi et al. 2024): trains the backbone for exits behind any layer.

Layers drop out in training, with a probability that rises with depth, and the shared norm and LM head learn
to read every layer's states. Needs memory for the whole model, its gradients and moments. The result is a new
checkpoint folder, whose exits need no heads: serve it with --exit-layers.
"""

import math
import os
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.nn import functional

from shard.host_memory import available_bytes
from shard.models.shape import read_config, shape_of
from shard.precision import Precision, precision_of
from shard.tune.preflight import check
from shard.tune.progress import Progress
from shard.tune.sources import make_texts
from shard.tune.text import Passage
from shard.tune.training import BETAS, MAX_GRADIENT_NORM, Plan, rate_share
from shard.tune.tune_config import Ask

MAX_DROPOUT = 0.1  # probability at the last layer
EXIT_SCALE = 0.2  # weight of all exits' losses together, relative to the last layer's
EXITS_EACH_STEP = 3  # layers whose losses are computed in a step, in turns
BYTES_PER_PARAMETER = 20  # weight, gradient, two moments, temporary products
CHECKPOINT = "layerskip.training"
SAVE_STEPS = 100
RATE_SHARE = 0.02  # share of a head's learning rate: the backbone is already trained


def tune_layerskip(ask: Ask, progress: Progress) -> None:
    """Train and write the checkpoint folder. Raises `ValueError`, `OSError` or `MemoryError`."""
    shape = shape_of(read_config(ask.model))
    check(ask, shape)
    weights = sum(path.stat().st_size for path in ask.model.glob("*.safetensors")) // 2
    if weights * BYTES_PER_PARAMETER > _free_bytes(ask.machine.device):
        raise MemoryError(
            f"LayerSkip trains the whole model, about {weights * BYTES_PER_PARAMETER >> 20} MiB, "
            "which is more than is free here: --recipe exits leaves the model as it is."
        )
    texts = make_texts(ask, shape, progress).values()
    passages = [passage for text in texts for passage in text if not passage.held_out]
    precision = precision_of(ask.machine.device, ask.machine.dtype)
    training = LayerSkip(ask.model, ask.wanted.plan, ask.machine.device, precision)
    ask.out.mkdir(parents=True, exist_ok=True)
    checkpoint = ask.out / CHECKPOINT
    if ask.wanted.resume and checkpoint.exists():
        training.resume(checkpoint)
    for loss in training.run(passages):
        progress.tell("training the model", training.step, ask.wanted.plan.num_steps, f"loss {loss:.3f}")
        if training.step % SAVE_STEPS == 0:
            training.save(checkpoint)
    training.write(ask.model, ask.out)
    checkpoint.unlink(missing_ok=True)


class LayerSkip:
    """Training of a whole model. Each step is a function of the seed and the step's number."""

    def __init__(self, folder: Path, plan: Plan, device: str, precision: Precision):
        from transformers import AutoModelForCausalLM  # seconds to import

        self._plan = plan
        self._precision = precision
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
        self._layers: list[Any] = next(
            list(part)
            for part in self._model.modules()
            if isinstance(part, torch.nn.ModuleList) and len(part) > 1
        )
        self._norm = _final_norm(self._model)
        self._draw = random.Random()
        self.step = 0
        for index, layer in enumerate(self._layers):
            layer.register_forward_hook(self._dropping(dropout(index, len(self._layers))))
        rate = plan.rate * RATE_SHARE
        self._optimizer = torch.optim.AdamW(self._model.parameters(), rate, BETAS, weight_decay=0.0)

    def run(self, passages: Sequence[Passage]) -> Iterator[float]:
        """Train to the end of the plan; yields each step's loss."""
        self._model.train()
        for number, batch in enumerate(_batches(passages, self._plan)):
            if number >= self.step:
                self.step = number + 1
                yield self._learn(batch, number)

    def save(self, path: Path) -> None:
        """Save all that is needed to resume."""
        state = {
            "step": self.step,
            "plan": msgspec.json.encode(self._plan),
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        temporary = path.with_suffix(".partial")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def resume(self, path: Path) -> None:
        """Resume from what `save` wrote. Raises `ValueError` if that was another training."""
        state = torch.load(path, weights_only=True)
        if state["plan"] != msgspec.json.encode(self._plan):
            raise ValueError(
                f"{path} is of a training with other settings: tune without --resume to begin anew."
            )
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def write(self, source: Path, folder: Path) -> None:
        """Write the checkpoint in its storage type, with the source's tokenizer."""
        self._model.to(self._precision.storage).eval().save_pretrained(folder)
        for path in source.iterdir():
            if path.suffix in (".json", ".jinja", ".model", ".txt") and not (folder / path.name).exists():
                shutil.copy(path, folder)

    def _learn(self, batch: list[Passage], number: int) -> float:
        self._draw.seed(f"{self._plan.seed} {number}")
        device = self._model.device
        tokens = [torch.tensor(passage.token_ids) for passage in batch]
        ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(device)
        learned = torch.zeros(ids.shape, dtype=torch.bool, device=device)
        for row, passage in enumerate(batch):
            learned[row, passage.num_prompt_tokens - 1 : len(passage.token_ids) - 1] = True
        compute = self._precision.compute
        with torch.autocast(device.type, dtype=compute, enabled=compute is not torch.float32):
            states = self._model.base_model(input_ids=ids, output_hidden_states=True).hidden_states
            loss = self._loss(states, ids.roll(-1, 1)[learned], learned, number)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRADIENT_NORM)
        for group in self._optimizer.param_groups:
            group["lr"] = self._plan.rate * RATE_SHARE * rate_share(number, self._plan.num_steps)
        self._optimizer.step()
        return float(loss.detach())

    def _loss(
        self, states: Sequence[torch.Tensor], goals: torch.Tensor, learned: torch.Tensor, number: int
    ) -> torch.Tensor:
        """The last layer's loss, plus those of a few others by depth; goals (N,) belong to `learned`."""
        depth = len(self._layers)
        last = functional.cross_entropy(self._model.lm_head(states[-1][learned]).float(), goals)
        turns = range(
            1 + number % max(1, (depth - 1) // EXITS_EACH_STEP), depth, max(1, (depth - 1) // EXITS_EACH_STEP)
        )
        total = sum(turns)
        for layer in turns:
            logits = self._model.lm_head(self._norm(states[layer][learned])).float()
            last = last + EXIT_SCALE * layer / total * functional.cross_entropy(logits, goals)
        return last

    def _dropping(self, rate: float) -> Any:
        """A hook that skips a layer for a whole batch with probability `rate`."""

        def hook(_: Any, given: Any, made: Any) -> Any:
            if not self._model.training or self._draw.random() >= rate:
                return made
            return (given[0], *made[1:]) if isinstance(made, tuple) else given[0]

        return hook


def dropout(index: int, num_layers: int) -> float:
    """Dropout probability, which rises exponentially from 0 to the last layer's maximum (equation 1)."""
    return MAX_DROPOUT * (math.exp(index * math.log(2) / max(1, num_layers - 1)) - 1)


def _final_norm(model: Any) -> Any:
    base = model.base_model
    base = getattr(base, "decoder", base)
    return next(getattr(base, name) for name in ("norm", "final_layer_norm", "ln_f") if hasattr(base, name))


def _batches(passages: Sequence[Passage], plan: Plan) -> Iterator[list[Passage]]:
    """`num_steps` batches of about `batch_targets` answer tokens, repeating the text."""
    draw, number = random.Random(plan.seed), 0
    order: list[Passage] = []
    while number < plan.num_steps:
        batch: list[Passage] = []
        while sum(passage.num_answer_tokens for passage in batch) < plan.batch_targets:
            order = order or draw.sample(list(passages), len(passages))
            batch.append(order.pop())
            if len(batch) >= len(passages):
                break
        number += 1
        yield batch


def _free_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0]
    there = available_bytes()
    return sys.maxsize if there is None else there
