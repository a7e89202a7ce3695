"""Generates answers with exits, as a server would, and measures how often they differ from full depth.

The text before a token was generated with the same exits, as it will be served. Every exit is asked for every
token; a server that skips exits that do not pay takes more tokens from full depth.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import msgspec

from shard.messages import NewSequence, Sampling, TokenOutput
from shard.offline import Answer, OfflineEngine
from shard.runner import ModelRunner


class Wanted(msgspec.Struct, frozen=True):
    """How to answer prompts."""

    max_new_tokens: int = 64
    batch_size: int = 64
    temperature: float = 0.0
    seed: int = 0

    def sampling(self, number: int) -> Sampling:
        """Sampling of prompt `number`, which has its own seed."""
        return Sampling(temperature=self.temperature, seed=self.seed * 1_000_003 + number)


class Outcome(msgspec.Struct, frozen=True):
    """Statistics of answers: the risk of each sequence, and the exits of tokens."""

    risks: list[float]  # early tokens that full depth would not have said / tokens
    tokens_by_layer: dict[int, int]
    confidences: list[float] = []  # of tokens that have a confidence

    @property
    def mean_risk(self) -> float:
        return sum(self.risks) / len(self.risks)

    @property
    def num_tokens(self) -> int:
        return sum(self.tokens_by_layer.values())

    @property
    def coverage(self) -> dict[int, float]:
        """Share of tokens by exit layer."""
        return {layer: count / self.num_tokens for layer, count in sorted(self.tokens_by_layer.items())}

    @property
    def expected_depth(self) -> float:
        """Layers per token."""
        return sum(layer * count for layer, count in self.tokens_by_layer.items()) / self.num_tokens


def answer(
    runner: ModelRunner, prompts: Sequence[list[int]], wanted: Wanted
) -> Iterator[tuple[Answer, list[TokenOutput]]]:
    """Yields each answer when complete, in any order, and its tokens as they were chosen."""
    sequences = [
        NewSequence(number, 0, prompt, len(prompt), wanted.max_new_tokens, sampling=wanted.sampling(number))
        for number, prompt in enumerate(prompts)
    ]
    for finished in OfflineEngine(runner, wanted.batch_size).run(sequences):
        asked, tokens = finished.sequence, finished.tokens
        ids, layers = [token.id for token in tokens], [token.exit_layer for token in tokens]
        yield Answer(asked.id, asked.token_ids, ids, 0, layers, asked.sampling), tokens


def measure(
    served: ModelRunner,
    full: ModelRunner,
    prompts: Sequence[list[int]],
    wanted: Wanted,
    advance: Callable[[], object] = lambda: None,
) -> Outcome:
    """Generate answers by `served`, and score them by `full`, which runs all layers.

    `advance` is called for each answer, and for each scored one.
    """
    counts: Counter[int] = Counter()
    answers = dict[int, Answer]()
    confidences: list[float] = []
    for made, tokens in answer(served, prompts, wanted):
        counts.update(made.exit_layers)
        confidences += [token.confidence for token in tokens if token.confidence is not None]
        answers[made.number] = made
        advance()
    risks = [0.0] * len(prompts)
    doubtful = [early for made in answers.values() if (early := _up_to_the_last_early(made, full.depth))]
    for made, scores in OfflineEngine(full, wanted.batch_size).score(doubtful):
        wrong = sum(
            layer < full.depth and token != said.choice
            for layer, token, said in zip(made.exit_layers, made.token_ids, scores, strict=True)
        )
        risks[made.number] = wrong / len(answers[made.number].token_ids)
        advance()
    return Outcome(risks, dict(counts), confidences)


def _up_to_the_last_early(answer: Answer, num_layers: int) -> Answer | None:
    """The part of an answer that must be scored; None if all tokens are full depth's."""
    early = [at for at, layer in enumerate(answer.exit_layers) if layer < num_layers]
    if not early:
        return None
    end = early[-1] + 1
    return msgspec.structs.replace(
        answer, token_ids=answer.token_ids[:end], exit_layers=answer.exit_layers[:end]
    )
