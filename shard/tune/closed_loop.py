"""Answers as a server would give them, with exits on, and how often they part from full depth.

The text before a token was generated with the same exits: what is measured is what will be served. Every exit
is asked for every token; a server that asks less, since it does not pay, takes more tokens from full depth.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

import msgspec

from shard.answers import Answer
from shard.messages import NewSequence, Sampling, Step, TokenOutput, Work
from shard.runner import ModelRunner
from shard.score import Scoring

PREFILL_TOKENS = 128  # of one prompt in one step


class Wanted(msgspec.Struct, frozen=True):
    """How prompts are to be answered."""

    max_new_tokens: int = 64
    batch_size: int = 64
    temperature: float = 0.0
    seed: int = 0

    def sampling(self, number: int) -> Sampling:
        """Each prompt has noise of its own."""
        return Sampling(temperature=self.temperature, seed=self.seed * 1_000_003 + number)


class Outcome(msgspec.Struct, frozen=True):
    """What answers were like: the risk of each sequence, and where tokens were taken."""

    risks: list[float]  # early tokens that full depth would not have said / tokens
    tokens_by_layer: dict[int, int]
    confidences: list[float] = []  # of tokens whose exit was asked

    @property
    def mean_risk(self) -> float:
        return sum(self.risks) / len(self.risks)

    @property
    def num_tokens(self) -> int:
        return sum(self.tokens_by_layer.values())

    @property
    def coverage(self) -> dict[int, float]:
        """Share of tokens by the layer at which they were taken."""
        return {layer: count / self.num_tokens for layer, count in sorted(self.tokens_by_layer.items())}

    @property
    def expected_depth(self) -> float:
        """Layers per token."""
        return sum(layer * count for layer, count in self.tokens_by_layer.items()) / self.num_tokens


class Talk:
    """A runner that answers prompts, some at a time."""

    def __init__(self, runner: ModelRunner, prompts: Sequence[list[int]], wanted: Wanted):
        self._runner = runner
        self._prompts = prompts
        self._wanted = wanted
        self._made: list[list[TokenOutput]] = [[] for _ in prompts]
        self._attempts = [0] * len(prompts)

    def run(self) -> Iterator[Answer]:
        """Each answer when it is complete, in whatever order."""
        waiting, running = deque(range(len(self._prompts))), set[int]()
        for number in itertools.count(1):
            new = []
            while waiting and len(running) < self._wanted.batch_size:
                new.append(self._sequence(waiting.popleft()))
                running.add(new[-1].id)
            if not running:
                return
            work = [Work(id, self._attempts[id], PREFILL_TOKENS) for id in running]
            output = self._runner.run(Step(number, work, new))
            for made in output.outputs:
                self._made[made.id] += made.tokens
                if made.finish is not None:
                    running.remove(made.id)
                    yield self._answer(made.id)
            for id, _ in output.preempted:
                running.remove(id)
                waiting.appendleft(id)
                self._attempts[id] += 1

    @property
    def confidences(self) -> list[float]:
        """Of all tokens made so far that were asked for one."""
        return [token.confidence for made in self._made for token in made if token.confidence is not None]

    def _sequence(self, id: int) -> NewSequence:
        prompt, made = self._prompts[id], [token.id for token in self._made[id]]
        return NewSequence(
            id,
            self._attempts[id],
            prompt + made,
            len(prompt),
            self._wanted.max_new_tokens,
            sampling=self._wanted.sampling(id),
        )

    def _answer(self, id: int) -> Answer:
        made = self._made[id]
        layers = [token.exit_layer for token in made]
        return Answer(
            id, self._prompts[id], [token.id for token in made], 0, layers, self._wanted.sampling(id)
        )


def measure(
    served: ModelRunner,
    full: ModelRunner,
    prompts: Sequence[list[int]],
    wanted: Wanted,
    advance: Callable[[], object] = lambda: None,
) -> Outcome:
    """Answers by `served`, read by `full`, which runs all layers.

    `advance` is told of each answer, and of each reading of one.
    """
    counts: Counter[int] = Counter()
    answers = dict[int, Answer]()
    talk = Talk(served, prompts, wanted)
    for answer in talk.run():
        counts.update(answer.exit_layers)
        answers[answer.number] = answer
        advance()
    risks = [0.0] * len(prompts)
    doubtful = [early for answer in answers.values() if (early := _up_to_the_last_early(answer, full.depth))]
    for answer, scores in Scoring(full, doubtful, wanted.batch_size).run():
        wrong = sum(
            layer < full.depth and token != said.choice
            for layer, token, said in zip(answer.exit_layers, answer.token_ids, scores, strict=True)
        )
        risks[answer.number] = wrong / len(answers[answer.number].token_ids)
        advance()
    return Outcome(risks, dict(counts), talk.confidences)


def _up_to_the_last_early(answer: Answer, num_layers: int) -> Answer | None:
    """As much of an answer as has to be read; None when full depth has said all of it."""
    early = [at for at, layer in enumerate(answer.exit_layers) if layer < num_layers]
    if not early:
        return None
    end = early[-1] + 1
    return msgspec.structs.replace(
        answer, token_ids=answer.token_ids[:end], exit_layers=answer.exit_layers[:end]
    )
