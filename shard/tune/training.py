"""Trains exit heads on full depth's distribution at every position of an answer; the backbone stays frozen.

All exits learn in one pass over the cached states. Each step is a function of the seed and the step's number,
so that interrupted training resumes to the same result.
"""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import torch

from shard.tune.batches import Place, Source, epoch, load_batch
from shard.tune.heads import Head
from shard.tune.layers import Backbone
from shard.tune.loss import Measured, distance, draw_candidates
from shard.tune.vocabulary import Fixed, Vocabulary

BETAS = (0.9, 0.95)
WARMUP_SHARE = 0.03
LAST_RATE_SHARE = 0.02  # share of the learning rate at the end of the cosine
MAX_GRADIENT_NORM = 1.0

Notes = TypeVar("Notes")


class Plan(msgspec.Struct, frozen=True):
    """Hyperparameters of training."""

    num_steps: int
    batch_targets: int = 3072  # approximate positions per step
    rate: float = 1e-3
    weight_decay: float = 0.01
    num_sampled: int = 2048  # sampled tokens beside the likely ones
    seed: int = 0


class Student(msgspec.Struct, frozen=True):
    """All that is trained, and its training data."""

    back: Backbone
    heads: list[Head]
    vocabulary: Vocabulary
    to: torch.Tensor  # an empty tensor of the device and dtype of products

    @property
    def layers(self) -> list[int]:
        return [head.layer for head in self.heads]

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """All that is trained, by name."""
        own = {
            f"exits.{head.layer}.{name}": weight
            for head in self.heads
            for name, weight in head.weights.items()
        }
        return own | {f"vocabulary.{name}": weight for name, weight in self.vocabulary.weights.items()}


class Trainer:
    """Trains a student by a plan."""

    def __init__(self, student: Student, sources: Sequence[Source], plan: Plan):
        self._student = student
        self._sources = sources
        self._plan = plan
        self.step = 0
        self._head = Fixed(student.back.head)  # for heads that rerank
        self._parameters = student.parameters
        for parameter in self._parameters.values():
            parameter.requires_grad_()
        matrices = [parameter for parameter in self._parameters.values() if parameter.ndim > 1]
        others = [parameter for parameter in self._parameters.values() if parameter.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": plan.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=plan.rate,
            betas=BETAS,
            fused=True,
        )

    def run(self) -> Iterator[dict[int, Measured]]:
        """Train to the end of the plan; yields each step's statistics by exit."""
        for number, batch in enumerate(self._batches()):
            if number >= self.step:
                made, loss = self._compare(batch)
                self._learn(loss)
                self.step = number + 1
                yield made

    def save(self, path: Path, notes: object) -> None:
        """Save all that is needed to resume, with `notes`."""
        state = {
            "step": self.step,
            "notes": msgspec.json.encode(notes),
            "plan": msgspec.json.encode(self._plan),
            "parameters": self._parameters,
            "optimizer": self._optimizer.state_dict(),
        }
        temporary = path.with_suffix(".partial")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def resume(self, path: Path, notes: type[Notes]) -> Notes:
        """Resume from what `save` wrote; returns its notes. Raises `ValueError` for another training."""
        state = torch.load(path, map_location=self._student.to.device, weights_only=True)
        same = state["plan"] == msgspec.json.encode(self._plan)
        names = {name: parameter.shape for name, parameter in state["parameters"].items()}
        if not same or names != {name: parameter.shape for name, parameter in self._parameters.items()}:
            raise ValueError(
                f"{path} is of a training with other settings: tune without --resume to begin anew."
            )
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state["parameters"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        return msgspec.json.decode(state["notes"], type=notes)

    def _batches(self) -> Iterator[list[Place]]:
        number = 0
        for turn in range(self._plan.num_steps):
            for batch in epoch(self._sources, self._plan.batch_targets, self._plan.seed, turn):
                if number == self._plan.num_steps:
                    return
                number += 1
                yield batch

    def _compare(self, places: list[Place]) -> tuple[dict[int, Measured], torch.Tensor]:
        """Statistics of a batch by exit, and the loss of all together."""
        student, plan = self._student, self._plan
        batch = load_batch(self._sources, places, student.layers, student.to)
        vocab_size = student.back.shape.vocab_size
        candidates = draw_candidates(batch.targets.ids, vocab_size, plan.num_sampled, self._step_seed)
        rows = student.vocabulary.rows(candidates.ids, student.to.dtype)
        reranks = any(head.rerank is not None for head in student.heads)
        own = self._head.rows(candidates.ids, student.to.dtype) if reranks else rows
        made, losses = {}, []
        for head in student.heads:
            features = head.features(student.back, batch.states[head.layer], batch.rows)
            if head.rerank is None:
                made[head.layer] = distance(head.reduced(features), rows, batch.targets, candidates)
            else:
                made[head.layer] = distance(head.adapted(features), own, batch.targets, candidates)
                # the proposing product follows the features, without gradients to them
                proposed = distance(head.reduced(features.detach()), rows, batch.targets, candidates)
                losses.append(proposed.loss)
        loss = torch.stack([*losses, *(measured.loss for measured in made.values())]).sum()
        return {
            layer: msgspec.structs.replace(result, loss=result.loss.detach())
            for layer, result in made.items()
        }, loss

    def _learn(self, loss: torch.Tensor) -> None:
        """One step of the optimizer."""
        self._optimizer.zero_grad()
        loss.backward()
        self._clip()
        for group in self._optimizer.param_groups:
            group["lr"] = self._plan.rate * self._rate_share()
        self._optimizer.step()

    def _rate_share(self) -> float:
        return rate_share(self.step, self._plan.num_steps)

    @property
    def _step_seed(self) -> int:
        return self._plan.seed * 1_000_003 + self.step

    def _clip(self) -> None:
        """Clip each exit's gradients separately: large ones of one exit do not slow the others."""
        groups: dict[str, list[torch.Tensor]] = {}
        for name, parameter in self._parameters.items():
            exit_head = ".".join(name.split(".")[:2])
            groups.setdefault(exit_head, []).append(parameter)
        for parameters in groups.values():
            torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)


def rate_share(step: int, num_steps: int) -> float:
    """Share of the learning rate: linear warm-up, then cosine decay."""
    warmup = max(1, round(WARMUP_SHARE * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return LAST_RATE_SHARE + (1 - LAST_RATE_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))
