"""`speculative`: drafts at an exit, which the remaining layers verify at all positions in one pass.

Drafting already computes the KV of the shallow layers and the hidden states at the exit (LayerSkip, Elhoushi
et al. 2024). The full model's token is drawn with the noise of its position, and a draft is accepted if
equal: the output equals `full`'s, greedy and sampled.
"""

import functools
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import torch

from shard.engine.full_depth import FullDepth
from shard.engine.sampler import Draw, Sampler
from shard.engine.sequence import Sequence
from shard.engine.sequence_table import Chunk
from shard.exits.draft_planner import MAX_DRAFTS, PRIOR, Acceptance, Costs, Plan, plan_round
from shard.exits.fallback import ExitFallback
from shard.exits.segments import ActiveRows, Row, SegmentedDecoder
from shard.messages import DRAFT_PLACES, DraftCount, DrafterKind, ExitReport, TokenOutput

Reserve = Callable[[Sequence, int], bool]  # takes blocks up to a number of tokens, without preempting


class Draft(msgspec.Struct):
    """One row's round in progress."""

    row: Row
    plan: Plan
    start: int  # position of the first token run
    tokens: list[int] = []  # drafted tokens


class Speculative:
    """Runs the chunks of a step: decoding ones draft and verify in one round."""

    def __init__(
        self,
        segmented: SegmentedDecoder,
        full_depth: FullDepth,
        sampler: Sampler,
        reserve: Reserve,
        falls_back: bool,
    ):
        self._segmented = segmented
        self._full_depth = full_depth
        self._sampler = sampler
        self._reserve = reserve
        self.fallback = ExitFallback(falls_back)
        self.costs = Costs(*([0.0] * len(segmented.exits) for _ in range(3)))
        self._overall = Acceptance([PRIOR] * len(segmented.exits))
        self._acceptance: WeakKeyDictionary[Sequence, Acceptance] = WeakKeyDictionary()

    def run(self, chunks: list[Chunk]) -> tuple[list[list[TokenOutput]], ExitReport]:
        """For each chunk its next tokens: one or more for those that decode, none while a prompt goes on."""
        started = time.perf_counter()
        decoding = [chunk for chunk in chunks if _drafts(chunk)]
        if self._wants(decoding):
            tokens, report = self._run(chunks)
        else:
            tokens, report = [made.tokens for made in self._full_depth.run(chunks)], ExitReport()
        if len(decoding) == len(chunks):
            num_tokens = sum(len(made) for made in tokens)
            self.fallback.note(len(chunks), num_tokens, (time.perf_counter() - started) * 1000)
        layers = [token.exit_layer for made in tokens for token in made]
        by_exit = {self._segmented.decoder.depth: len(layers)} if layers else {}
        return tokens, msgspec.structs.replace(report, tokens_by_exit=by_exit)

    def _wants(self, decoding: list[Chunk]) -> bool:
        return bool(decoding) and self.fallback.wants_exits(len(decoding))

    def _run(self, chunks: list[Chunk]) -> tuple[list[list[TokenOutput]], ExitReport]:
        drafts = {chunk.sequence: self._begin(chunk) for chunk in chunks if _drafts(chunk)}
        for number in range(max(draft.plan.num_passes for draft in drafts.values())):
            self._pass([d for d in drafts.values() if d.plan.num_passes > number], number)
        rows = [
            drafts[c.sequence].row if c.sequence in drafts else Row(c, self._segmented.num_segments)
            for c in chunks
        ]
        active = self._verify(rows, drafts)
        drawn = self._draw(active, drafts)
        self._segmented.laps.settle()
        counts = DraftCount([0] * DRAFT_PLACES, [0] * DRAFT_PLACES)
        for draft in drafts.values():
            del draft.row.sequence.token_ids[draft.start + 1 :]
            kept = self._accept(draft, drawn[draft.row])
            drawn[draft.row] = drawn[draft.row][: kept + 1]
            for place in range(len(draft.tokens)):
                counts.drafted[min(place, DRAFT_PLACES - 1)] += 1
                counts.accepted[min(place, DRAFT_PLACES - 1)] += place < kept
        tokens = [
            row.chunk.standing(drawn[row]) if row.chunk.num_drafts else drawn.get(row, []) for row in rows
        ]
        return tokens, ExitReport(drafts={DrafterKind.EXIT: counts})

    def _begin(self, chunk: Chunk) -> Draft:
        """Plan a row's round, within its blocks and its limits."""
        sequence = chunk.sequence
        acceptance = self._acceptance.setdefault(sequence, Acceptance(self._overall.rates))
        wanted = min(MAX_DRAFTS, sequence.max_new_tokens - sequence.num_new_tokens)
        if not self._reserve(sequence, chunk.end + wanted - 1):
            wanted = 1
        plan = plan_round(acceptance, self.costs, wanted)
        row = Row(Chunk(sequence, chunk.start, plan.num_passes), self._segmented.num_segments)
        return Draft(row, plan, chunk.start)

    def _pass(self, drafts: list[Draft], number: int) -> None:
        """Run each row's newest token to its exit, and draft the next one there, except in its last pass."""
        spans = [
            Row(Chunk(d.row.sequence, d.start + number, 1), self._segmented.num_segments) for d in drafts
        ]
        draft_of = {id(row): draft for row, draft in zip(spans, drafts, strict=True)}
        active: ActiveRows | None = self._segmented.start(spans)
        laps = self._segmented.laps
        lap = laps.start()
        for segment in range(len(self._segmented.exits)):
            assert active is not None
            self._segmented.run(segment, active)
            out = [i for i, row in enumerate(active.rows) if draft_of[id(row)].plan.exit_index == segment]
            if out:
                laps.stop(lap, functools.partial(self.costs.note_shallow, segment))
                active = self._stop(segment, active, out, [draft_of[id(active.rows[i])] for i in out], number)
            if active is None:
                return

    def _stop(
        self, segment: int, active: ActiveRows, out: list[int], drafts: list[Draft], number: int
    ) -> ActiveRows | None:
        """Draft for rows at their exit, and keep hidden states for verification; returns those that go on."""
        pieces = active.pieces()
        for i, draft in zip(out, drafts, strict=True):
            draft.row.pending_states.keep(segment + 1, pieces[i])
        asked = [i for i, draft in zip(out, drafts, strict=True) if draft.plan.num_passes > number + 1]
        if asked:
            self._draft(segment, active, asked, [d for d in drafts if d.plan.num_passes > number + 1])
        staying = [i for i in range(len(active.rows)) if i not in out]
        if not staying:
            return None
        return self._segmented.activate([active.rows[i] for i in staying], [pieces[i] for i in staying])

    def _draft(self, segment: int, active: ActiveRows, asked: list[int], drafts: list[Draft]) -> None:
        lap = self._segmented.laps.start()
        exit_head = self._segmented.exits[segment]
        logits = exit_head.vocabulary(self._segmented.features(segment, active, asked))
        sequences = [draft.row.sequence for draft in drafts]
        drawn = self._sampler.choose(logits, [Draw(s, s.num_tokens, exit_head.layer) for s in sequences])
        for draft, token in zip(drafts, drawn, strict=True):
            draft.tokens.append(token.id)
            draft.row.sequence.token_ids.append(token.id)
        self._segmented.laps.stop(lap, functools.partial(self.costs.note_head, segment))

    def _verify(self, rows: list[Row], drafts: dict[Sequence, Draft]) -> ActiveRows:
        """One pass beyond the exits for all drafted positions, together with the prompts of the step."""
        prompts = [row for row in rows if row.sequence not in drafts]
        active = self._segmented.start(prompts) if prompts else None
        laps, began = self._segmented.laps, dict[int, Any]()
        for segment in range(self._segmented.num_segments):
            joining = [d.row for d in drafts.values() if d.plan.exit_index == segment - 1]
            if joining:
                began[segment - 1] = laps.start()
            active = self._segmented.enter(segment, active, joining)
            if active is not None:
                self._segmented.run(segment, active)
        assert active is not None
        if not prompts:
            for exit_head, lap in began.items():
                laps.stop(lap, functools.partial(self.costs.note_deep, exit_head))
        return active

    def _draw(self, active: ActiveRows, drafts: dict[Sequence, Draft]) -> dict[Row, list[TokenOutput]]:
        """The full model's token behind every drafted position, and behind each prompt that is complete."""
        draws: list[Draw] = []
        owners: list[Row] = []
        at: list[int] = []
        depth, offset = self._segmented.decoder.depth, 0
        for row, count in zip(active.rows, active.counts, strict=True):
            positions = range(count) if row.sequence in drafts else range(count - row.chunk.num_draws, count)
            for i in positions:
                draws.append(Draw(row.sequence, row.chunk.end - count + i + 1, depth))
                owners.append(row)
                at.append(offset + i)
            offset += count
        drawn: dict[Row, list[TokenOutput]] = {}
        if not draws:
            return drawn
        hidden = active.hidden[torch.tensor(at, device=active.hidden.device)]
        for row, token in zip(
            owners, self._sampler.choose(self._segmented.decoder.logits(hidden), draws), strict=True
        ):
            drawn.setdefault(row, []).append(token)
        return drawn

    def _accept(self, draft: Draft, drawn: list[TokenOutput]) -> int:
        """Number of leading drafts equal to the full model's tokens."""
        kept = 0
        for guess, token in zip(draft.tokens, drawn, strict=False):
            if guess != token.id:
                break
            kept += 1
        for known in (self._acceptance[draft.row.sequence], self._overall):
            known.note(draft.plan.exit_index, len(draft.tokens), kept)
        return kept


def _drafts(chunk: Chunk) -> bool:
    """The chunk decodes, and nobody else has drafted for it: its only current token is the newest."""
    return chunk.samples and chunk.num_tokens == 1 and chunk.sequence.num_new_tokens > 0
