"""Workloads: seeded, reproducible jobs from prompts, random lengths or a trace.

A job is one conversation: usually a single request, else turns, each sent after the previous answer.
"""

import random
from collections.abc import Sequence
from typing import Protocol

import msgspec

from loadgen.client.answers import NEVER, Cancel
from loadgen.traffic.datasets import Conversation
from loadgen.traffic.drift import Schedule
from loadgen.traffic.filler import Filler
from loadgen.traffic.lengths import Lengths
from loadgen.traffic.traces import BLOCK_TOKENS, TraceRow


class Job(msgspec.Struct, frozen=True):
    """A conversation. `max_tokens` has one entry per turn."""

    number: int
    group: str
    turns: tuple[str, ...]
    max_tokens: tuple[int, ...]
    system: str = ""
    think_s: tuple[float, ...] = ()  # pause before each turn after the first
    cancel: Cancel = NEVER


class Workload(Protocol):
    """A source of jobs. `number` rises by one from 0; `at_s` is the intended start since the run began."""

    def draw(self, number: int, at_s: float) -> Job: ...


class Manner(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters common to all jobs."""

    seed: int = 0
    output: Lengths = Lengths("fixed", 128)
    uses_answer_lengths: bool = False  # request as many tokens as the dataset's answer has
    max_turns: int = 1
    think_s: float = 0.0  # mean of a user's exponential pause between turns
    cancel_share: float = 0.0
    cancel_within_s: float | None = None  # None: cancel after a random number of tokens
    prefix_tokens: int = 0
    num_prefixes: int = 1

    def source(self, number: int) -> random.Random:
        """The random source of one job, independent of the order of drawing."""
        return random.Random(f"{self.seed}/{number}")

    def job(self, number: int, said: Conversation, source: random.Random, filler: Filler) -> Job:
        turns = said.turns[: self.max_turns]
        max_tokens = tuple(self._max_tokens(said, turn, source) for turn in range(len(turns)))
        if self.prefix_tokens:
            turns = (f"{self._prefix(source, filler)} {turns[0]}", *turns[1:])
        pauses = len(turns) - 1
        think = tuple(source.expovariate(1 / self.think_s) if self.think_s else 0.0 for _ in range(pauses))
        return Job(
            number, said.group, turns, max_tokens, said.system, think, self._cancel(max_tokens[0], source)
        )

    def _max_tokens(self, said: Conversation, turn: int, source: random.Random) -> int:
        drawn = self.output.draw(source)
        has_answer = self.uses_answer_lengths and turn < len(said.answer_tokens)
        return said.answer_tokens[turn] if has_answer else drawn

    def _prefix(self, source: random.Random, filler: Filler) -> str:
        which = source.randrange(self.num_prefixes)
        return filler.text(self.prefix_tokens, random.Random(f"{self.seed}/prefix/{which}"))

    def _cancel(self, max_tokens: int, source: random.Random) -> Cancel:
        if source.random() >= self.cancel_share:
            return NEVER
        if self.cancel_within_s is not None:
            return Cancel(after_s=source.uniform(0, self.cancel_within_s))
        return Cancel(after_tokens=source.randint(1, max(1, max_tokens - 1)))


class PromptWorkload:
    """Prompts by class from shuffled lists: none repeats before all of its class were used."""

    def __init__(self, prompts: Sequence[Conversation], schedule: Schedule, manner: Manner, filler: Filler):
        self._schedule = schedule
        self._manner = manner
        self._filler = filler
        self._by_group: dict[str, list[Conversation]] = {}
        for prompt in prompts:
            self._by_group.setdefault(prompt.group, []).append(prompt)
        self._decks: dict[str, list[Conversation]] = {group: [] for group in self._by_group}
        self._shuffler = random.Random(f"{manner.seed}/decks")

    def draw(self, number: int, at_s: float) -> Job:
        source = self._manner.source(number)
        mixture = self._schedule.at(number, at_s).mixture
        group = source.choices(list(mixture), list(mixture.values()))[0]
        return self._manner.job(number, self._deal(group), source, self._filler)

    def _deal(self, group: str) -> Conversation:
        if not self._decks[group]:
            deck = list(self._by_group[group])
            self._shuffler.shuffle(deck)
            self._decks[group] = deck
        return self._decks[group].pop()


class RandomWorkload:
    """Filler text of drawn lengths, including a shared prefix; further turns are drawn alike."""

    def __init__(self, input_lengths: Lengths, manner: Manner, filler: Filler):
        self._input = input_lengths
        self._manner = manner
        self._filler = filler

    def draw(self, number: int, at_s: float) -> Job:
        source = self._manner.source(number)
        own = max(1, self._input.draw(source) - self._manner.prefix_tokens)
        turns = [self._filler.prompt(own, source)]
        turns += [
            self._filler.text(self._input.draw(source), source) for _ in range(self._manner.max_turns - 1)
        ]
        return self._manner.job(number, Conversation("random", tuple(turns)), source, self._filler)


class TraceWorkload:
    """The lengths of a trace, row by row; blocks with equal ids have equal text, as shared prefixes."""

    def __init__(self, rows: Sequence[TraceRow], manner: Manner, filler: Filler):
        self._rows = rows
        self._manner = manner
        self._filler = filler

    def draw(self, number: int, at_s: float) -> Job:
        row = self._rows[number % len(self._rows)]
        source = self._manner.source(number)
        job = self._manner.job(
            number, Conversation("trace", (self._text(row, source),)), source, self._filler
        )
        return msgspec.structs.replace(job, max_tokens=(row.output_tokens,))

    def _text(self, row: TraceRow, source: random.Random) -> str:
        """Text with the row's number of tokens: full blocks by their ids, the rest unique."""
        wanted = max(1, row.input_tokens - self._filler.extra_tokens)
        shared = row.block_ids[: wanted // BLOCK_TOKENS]
        blocks = [self._filler.text(BLOCK_TOKENS, random.Random(f"block/{id}")) for id in shared]
        rest = wanted - BLOCK_TOKENS * len(blocks)
        return " ".join([*blocks, self._filler.text(rest, source)] if rest else blocks)
