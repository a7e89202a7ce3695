"""The pipeline from text and hidden states to an exit folder: vocabulary, heads, probes, evaluation."""

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from shard.exits.exit_heads import HeadKind
from shard.tune import folder as exit_folder
from shard.tune.batches import Place, Source, places_of
from shard.tune.evaluation import Curve, curve_of, predictions_of
from shard.tune.heads import Head, HeadSpec, first_weights
from shard.tune.layers import Backbone, Tensors
from shard.tune.loss import Measured
from shard.tune.probe import fit_probe, probed
from shard.tune.rerank import first_turns
from shard.tune.training import Plan, Student, Trainer
from shard.tune.vocabulary import Fixed, LowRank, Vocabulary, first_factors, low_rank

FACTOR_PASSAGES = 400  # passages whose features determine the first factors
SAVE_STEPS = 100
EVALUATION_STEPS = 200
EVALUATION_PASSAGES = 24  # held-out passages of each text, evaluated during training


class Wanted(msgspec.Struct, frozen=True):
    """The exits to make."""

    spec: HeadSpec
    plan: Plan
    vocabulary: Path  # file of the low-rank vocabulary
    vocabulary_steps: int = 0  # training steps at full depth, before any exit learns
    init: Path | None = None  # an exit folder to start from
    freeze_vocabulary: bool = False  # the file is read, not written
    resume: bool = False
    seconds: float | None = None  # of training a drafter; None: all steps of the plan


class HeldOutAgreement(msgspec.Struct, frozen=True):
    """Held-out agreement of each exit at one step of training, by text."""

    step: int
    agreement: dict[str, dict[int, float]]


class Result(msgspec.Struct, frozen=True):
    """Results on held-out passages: by exit layer, then by text."""

    num_training_tokens: dict[str, int]
    num_steps: int
    history: list[HeldOutAgreement]
    exits: dict[int, dict[str, Curve]]
    probes: dict[int, dict[str, Curve]]  # by the probe's confidence instead of the exit's


Tell = Callable[[str, int, int, dict[int, Measured]], None]  # (stage, step, num_steps, by exit)


class Tuning:
    """One tuning in stages. An interrupted one continues from `folder` and ends in the same heads."""

    def __init__(self, back: Backbone, sources: list[Source], wanted: Wanted, folder: Path, to: torch.Tensor):
        self._back = back
        self._sources = sources
        self._wanted = wanted
        self._folder = folder
        self._to = to  # an empty tensor of the device and dtype of products
        self._history: list[HeldOutAgreement] = []

    def run(self, tell: Tell) -> Result:
        """Train everything and write the exit folder, including vocabulary and probes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        vocabulary, heads = self._begin(tell)
        student = Student(self._back, heads, vocabulary, self._to)
        self._train(student, self._wanted.plan, "exits", tell)
        served = self._served(student)
        probes = self._probes(served)
        self._write(served, probes)
        for checkpoint in self._folder.glob("*.training"):
            checkpoint.unlink()
        return self._result(served, probes)

    def _begin(self, tell: Tell) -> tuple[Vocabulary, list[Head]]:
        """Initial vocabulary and heads."""
        back, wanted = self._back, self._wanted
        if wanted.init is not None:
            return self._given(wanted.init), self._reranking(self._given_heads(wanted.init))
        if wanted.spec.rank is None:
            return Fixed(back.head), self._first_heads(None)
        if wanted.freeze_vocabulary:
            raise ValueError(
                "--freeze-vocabulary needs --init, a folder whose exits have a low-rank vocabulary."
            )
        vocabulary, reducer = self._first_vocabulary(wanted.spec.rank, tell)
        return vocabulary, self._reranking(self._first_heads(reducer))

    def _given(self, init: Path) -> Vocabulary:
        if self._wanted.spec.rank is None:
            return Fixed(self._back.head)
        known = exit_folder.load_vocabulary(init, self._to.device)
        if self._wanted.freeze_vocabulary:
            return Fixed(known)
        mix = torch.zeros(self._back.shape.hidden_size, known.shape[1], device=known.device)
        return LowRank(self._back.head, {"mix": mix, "own": known})

    def _given_heads(self, init: Path) -> list[Head]:
        heads, spec = exit_folder.load_heads(init, self._to.device), self._wanted.spec
        there = [(head.layer, head.kind, head.rank) for head in heads]
        if there != [(layer, spec.kind, spec.rank) for layer in spec.layers]:
            raise ValueError(f"{init} has other exits than those asked for: {', '.join(map(str, there))}.")
        if spec.rerank is None and any(head.rerank is not None for head in heads):
            raise ValueError(f"The LM head decides for the exits of {init}: --head-rerank is needed as well.")
        return heads

    def _first_heads(self, reducer: torch.Tensor | None) -> list[Head]:
        spec = self._wanted.spec
        made = first_weights(spec, self._back, reducer, self._wanted.plan.seed)
        return [Head(layer, spec.kind, weights) for layer, weights in made.items()]

    def _reranking(self, heads: list[Head]) -> list[Head]:
        """The heads, with adapters for reranking if requested.

        Each adapter starts as the least-squares map from the head's features to full depth's.
        """
        rerank = self._wanted.spec.rerank
        lacking = [head for head in heads if rerank is not None and "rerank.weight" not in head.weights]
        turns = first_turns(self._back, lacking, self._sources, self._some_places(), self._to)
        return [
            Head(head.layer, head.kind, head.weights | turns.get(head.layer, {}), rerank) for head in heads
        ]

    def _some_places(self) -> list[Place]:
        """Training passages in an order that depends on the seed."""
        places = places_of(self._sources, "training")
        random.Random(self._wanted.plan.seed).shuffle(places)
        return places

    def _first_vocabulary(self, rank: int, tell: Tell) -> tuple[LowRank, torch.Tensor]:
        """A vocabulary trained at full depth, and its reducer (R, H)."""
        factors = first_factors(self._back, *self._features(), rank)
        vocabulary = low_rank(self._back, factors)
        depth = self._back.shape.num_layers
        reader = Head(depth, HeadKind.NORM, {"low_rank.weight": factors.reducer.clone()})
        plan = msgspec.structs.replace(self._wanted.plan, num_steps=self._wanted.vocabulary_steps)
        self._train(Student(self._back, [reader], vocabulary, self._to), plan, "vocabulary", tell)
        return vocabulary, reader.weights["low_rank.weight"].detach()

    def _features(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (N, H) of the LM head at full depth in some passages; expected count of each token."""
        counts, features = torch.zeros(self._back.shape.vocab_size), []
        for number, (source, passage) in enumerate(self._some_places()):
            cache = self._sources[source].cache
            ids, logprobs = cache.targets(passage)
            counts.index_add_(0, ids.flatten(), logprobs.exp().flatten())
            if number < FACTOR_PASSAGES:
                hidden = cache.states(self._back.shape.num_layers, passage)[-len(ids) :]
                features.append(self._back.normed(hidden.to(self._back.head)))
        return torch.cat(features), counts

    def _train(self, student: Student, plan: Plan, stage: str, tell: Tell) -> None:
        trainer = Trainer(student, self._sources, plan)
        path = self._folder / f"{stage}.training"
        if self._wanted.resume and path.exists():
            self._history = trainer.resume(path, list[HeldOutAgreement])
        for measured in trainer.run():
            tell(stage, trainer.step, plan.num_steps, measured)
            done = trainer.step == plan.num_steps
            if stage == "exits" and (trainer.step % EVALUATION_STEPS == 0 or done):
                self._history.append(self._held_out_agreement(student, trainer.step))
            if trainer.step % SAVE_STEPS == 0 or done:
                trainer.save(path, self._history)
        for parameter in student.parameters.values():
            parameter.requires_grad_(False)

    def _held_out_agreement(self, student: Student, step: int) -> HeldOutAgreement:
        """Agreement on some held-out passages of each text."""
        whole, agreement = student.vocabulary.whole(), {}
        for number, source in enumerate(self._sources):
            places = [(number, passage) for passage in source.held_out[:EVALUATION_PASSAGES]]
            seen = predictions_of(student, whole, self._sources, places, states=False)
            agreement[source.name] = {
                layer: float(judged.agrees.float().mean()) for layer, judged in seen.items()
            }
        return HeldOutAgreement(step, agreement)

    def _served(self, student: Student) -> Student:
        """The student with weights rounded as in the files."""
        rounded = exit_folder.rounded
        heads = [
            Head(
                head.layer,
                head.kind,
                {name: rounded(name, weight) for name, weight in head.weights.items()},
                head.rerank,
            )
            for head in student.heads
        ]
        rows = student.vocabulary.whole()
        is_own = self._wanted.spec.rank is not None and not self._wanted.freeze_vocabulary
        return Student(self._back, heads, Fixed(rounded("vocabulary", rows) if is_own else rows), self._to)

    def _probes(self, served: Student) -> dict[int, Tensors]:
        places = places_of(self._sources, "probing") or places_of(self._sources, "training")
        seen = predictions_of(served, served.vocabulary.whole(), self._sources, places, states=True)
        return {
            layer: fit_probe(judged.hidden, judged.agrees)
            for layer, judged in seen.items()
            if judged.hidden is not None
        }

    def _write(self, served: Student, probes: dict[int, Tensors]) -> None:
        is_low_rank = self._wanted.spec.rank is not None
        if is_low_rank and not self._wanted.freeze_vocabulary:
            exit_folder.save_vocabulary(self._wanted.vocabulary, served.vocabulary.whole())
        vocabulary = self._wanted.vocabulary if is_low_rank else None
        exit_folder.save_exits(self._folder, served, probes, vocabulary)

    def _result(self, served: Student, probes: dict[int, Tensors]) -> Result:
        exits: dict[int, dict[str, Curve]] = {layer: {} for layer in served.layers}
        asked: dict[int, dict[str, Curve]] = {layer: {} for layer in served.layers}
        for number, source in enumerate(self._sources):
            for kind, passages in source.kinds(source.held_out).items():
                places = [(number, passage) for passage in passages]
                for layer, seen in predictions_of(
                    served, served.vocabulary.whole(), self._sources, places, True
                ).items():
                    assert seen.hidden is not None
                    exits[layer][f"{source.name}, {kind}"] = curve_of(seen.agrees, seen.confidence)
                    chances = probed(probes[layer], seen.hidden)
                    asked[layer][f"{source.name}, {kind}"] = curve_of(seen.agrees, chances)
        tokens = {
            source.name: sum(source.cache.num_targets(passage) for passage in source.training)
            for source in self._sources
        }
        return Result(tokens, self._wanted.plan.num_steps, self._history, exits, asked)
