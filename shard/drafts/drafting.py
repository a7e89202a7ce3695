"""Drafts around a mode: guesses are appended to the sequences, the mode verifies them in its one pass.

The pass draws the model's own token behind every guess, with that position's noise, and what stands is what
it draws up to the first guess that was wrong (Leviathan et al. 2023, where the draw is deterministic): texts
are those of the same layers without drafts, greedy and sampled. A step without drafts is the mode's own.
"""

import time
from collections.abc import Callable
from itertools import accumulate

import msgspec
import torch

from shard.drafts.chain import MAX_LENGTH, Asked, DraftChain
from shard.drafts.drafter import Passed
from shard.engine.full_depth import FullDepth
from shard.engine.sequence_table import Chunk, SequenceTable
from shard.messages import DRAFT_PLACES, DraftCount, DrafterKind, ExitReport, TokenOutput

Verify = Callable[[list[Chunk]], tuple[list[list[TokenOutput]], ExitReport]]


class FullPass:
    """Verifies at full depth."""

    def __init__(self, full_depth: FullDepth, depth: int):
        self._full_depth = full_depth
        self._depth = depth

    def run(self, chunks: list[Chunk]) -> tuple[list[list[TokenOutput]], ExitReport]:
        """For each chunk the tokens that stand."""
        tokens = [made.tokens for made in self._full_depth.run(chunks)]
        num_tokens = sum(map(len, tokens))
        return tokens, ExitReport(tokens_by_exit={self._depth: num_tokens} if num_tokens else {})


class Drafting:
    """Runs the chunks of a step in a mode, which may verify drafts.

    `taps` are the mode's hidden states behind some layers, by their number, as its last pass left them.
    """

    def __init__(
        self, verify: Verify, chain: DraftChain, table: SequenceTable, taps: dict[int, torch.Tensor | None]
    ):
        self.chain = chain
        self._verify = verify
        self._table = table
        self._taps = taps
        taps.update(dict.fromkeys(chain.layers))
        table.retire, table.cleared = chain.retire, chain.clear

    def run(self, chunks: list[Chunk]) -> tuple[list[list[TokenOutput]], ExitReport]:
        """For each chunk its next tokens: one or more for those that decode, none while a prompt goes on."""
        asked = {i: self._ask(chunk) for i, chunk in enumerate(chunks) if chunk.decodes}
        num_others = sum(chunk.num_tokens for i, chunk in enumerate(chunks) if i not in asked)
        self.chain.propose(list(asked.values()), num_others)
        known = [chunk.sequence.num_tokens for chunk in chunks]
        drafted = [self._extended(chunk, asked.get(i)) for i, chunk in enumerate(chunks)]
        started = time.perf_counter()
        try:
            tokens, report = self._verify(drafted)
            ms = (time.perf_counter() - started) * 1000
            self._tell(drafted, tokens)
        finally:
            for chunk, num_known in zip(chunks, known, strict=True):
                del chunk.sequence.token_ids[num_known:]
        return tokens, self._settle(list(asked.values()), [tokens[i] for i in asked], num_others, ms, report)

    def _ask(self, chunk: Chunk) -> Asked:
        sequence = chunk.sequence
        left = min(
            sequence.max_new_tokens - sequence.num_new_tokens,
            self._table.max_total_tokens - sequence.num_tokens,
        )
        return Asked(sequence, max(0, min(MAX_LENGTH, left - 1)))

    def _extended(self, chunk: Chunk, asked: Asked | None) -> Chunk:
        """The chunk with its draft, which its sequence has for the time of the pass."""
        if asked is None or not asked.draft:
            return chunk
        chunk.sequence.token_ids += asked.draft.token_ids
        num_drafts = len(asked.draft)
        return Chunk(chunk.sequence, chunk.start, chunk.num_tokens + num_drafts, num_drafts)

    def _tell(self, chunks: list[Chunk], tokens: list[list[TokenOutput]]) -> None:
        """Tell the drafters what was computed for good, and forget the hidden states."""
        starts = [0, *accumulate(chunk.num_tokens for chunk in chunks)]
        passed = []
        for chunk, drawn, first in zip(chunks, tokens, starts, strict=False):
            ids = chunk.sequence.token_ids
            computed = ids[chunk.start : chunk.end - chunk.num_drafts]
            behind = [token.id for token in drawn] or ids[chunk.end : chunk.end + 1]
            num_kept = len(computed) + max(0, len(drawn) - 1)
            states = [state[first : first + num_kept] for state in self._taps.values() if state is not None]
            passed.append(Passed(chunk.sequence, chunk.start, num_kept, computed + behind, states))
        self.chain.note(passed)
        self._taps.update(dict.fromkeys(self._taps))

    def _settle(
        self,
        asked: list[Asked],
        tokens: list[list[TokenOutput]],
        num_others: int,
        ms: float,
        report: ExitReport,
    ) -> ExitReport:
        """Learn from the pass; its report with what became of the drafts."""
        accepted = [len(drawn) - 1 if one.draft else 0 for one, drawn in zip(asked, tokens, strict=True)]
        self.chain.settle(asked, accepted)
        if not asked:
            return report
        num_drafts, costs = sum(len(one.draft) for one in asked), self.chain.costs
        saved_ms = 0.0
        if num_drafts:
            alone_ms = costs.ms(len(asked), 0, num_others)
            saved_ms = alone_ms * (1 + sum(accepted) / len(asked)) - ms - self.chain.draft_ms
        costs.note(len(asked), num_drafts, num_others, ms)
        counts = _counts(asked, accepted)
        return msgspec.structs.replace(
            report,
            drafts=report.drafts | counts,
            draft_ms=report.draft_ms + self.chain.draft_ms,
            saved_ms=report.saved_ms + saved_ms,
        )


def _counts(asked: list[Asked], accepted: list[int]) -> dict[DrafterKind, DraftCount]:
    """What became of each drafter's guesses, by place."""
    counts: dict[DrafterKind, DraftCount] = {}
    for one, right in zip(asked, accepted, strict=True):
        if one.draft and one.drafter is not None:
            name = one.drafter.drafter.name
            none = DraftCount([0] * DRAFT_PLACES, [0] * DRAFT_PLACES)
            count = counts.setdefault(name, none)
            for place in range(len(one.draft)):
                count.drafted[min(place, DRAFT_PLACES - 1)] += 1
                count.accepted[min(place, DRAFT_PLACES - 1)] += place < right
    return counts
