"""The survey: every exit's confidence and correctness at every token of some answers.

One pass through all layers over whole answers of full depth, without early exits, by the engine's own heads.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from shard.engine.sampler import Draw, Sampler
from shard.engine.sequence_table import lay_out
from shard.exits.criterion import ConfidenceCriterion
from shard.exits.exit_heads import Exit, Vocabulary
from shard.exits.segments import ActiveRows, Row
from shard.messages import Criterion, NewSequence
from shard.offline import Answer
from shard.runner import ModelRunner
from shard.tune.path import Survey, Votes

PASS_TOKENS = 1024
LOGIT_ROWS = 128


def survey(
    runner: ModelRunner, criterion: Criterion, answers: Sequence[Answer], advance: Callable[[], object]
) -> Survey:
    """The votes of a runner's exits; the runner must be idle. `advance` is called for each answer."""
    reader = WeightReader(runner, criterion)
    parts = []
    for group in reader.groups(answers):
        parts.append(reader.read(group))
        for _ in group:
            advance()
    votes = [
        Votes(exit_head.layer, *(np.concatenate(arrays) for arrays in zip(*of_groups, strict=True)))
        for exit_head, *of_groups in zip(runner.stack.exits, *parts, strict=True)
    ]
    return Survey(votes, runner.depth, criterion in (Criterion.SOFTMAX, Criterion.MARGIN))


class WeightReader:
    """Runs answers through all layers of a runner, and asks its exits."""

    def __init__(self, runner: ModelRunner, criterion: Criterion):
        self._segmented = runner.stack
        self._pools = runner.kv_cache.layers
        self._num_blocks = runner.kv_cache.num_blocks
        self._block_size = runner.table.block_size
        self._sampler = Sampler(runner.ops, runner.decoder.embedding.device)
        self._criterion = ConfidenceCriterion(criterion, 1.0, runner.ops, self._sampler.rules)

    def groups(self, answers: Sequence[Answer]) -> Iterator[list[Answer]]:
        """Groups of answers to run together."""
        group: list[Answer] = []
        most = min(PASS_TOKENS // self._block_size, self._num_blocks)
        for answer in answers:
            if group and sum(map(self._blocks_of, [*group, answer])) > most:
                yield group
                group = []
            group.append(answer)
        if group:
            yield group

    @torch.inference_mode()
    def read(self, answers: Sequence[Answer]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each exit, confidences and agreement, both (T,), at every token except each answer's first.

        The first token comes from the prompt's pass, which has no early exits.
        """
        segmented = self._segmented
        chunks = lay_out(map(_but_the_last, answers), self._block_size)
        active = segmented.start([Row(chunk, segmented.num_segments) for chunk in chunks])
        draws, asked = _draws(active, segmented.decoder.depth)
        said = []
        for segment, exit_head in enumerate(segmented.exits):
            before = active.hidden[asked]
            segmented.run(segment, active)
            features = exit_head.features(self._behind_block(exit_head, active)[asked])
            tokens, by_logits = self._choose(exit_head.vocabulary, features, draws)
            sure = self._confidences(exit_head, by_logits, active.hidden[asked], before)
            said.append((sure, tokens))
        segmented.run(len(segmented.exits), active)
        right, _ = self._choose(segmented.decoder.head, segmented.decoder.normed(active.hidden[asked]), draws)
        return [(sure.cpu().numpy(), tokens == right) for sure, tokens in said]

    def _behind_block(self, exit_head: Exit, active: ActiveRows) -> torch.Tensor:
        """Hidden states (T, H) behind an exit's own layer, if it has one."""
        if exit_head.block is None:
            return active.hidden
        return self._segmented.decoder.run_layer(
            exit_head.block, active.hidden, active.batch, self._pools[exit_head.block]
        )

    def _confidences(
        self, exit_head: Exit, by_logits: torch.Tensor, hidden: torch.Tensor, before: torch.Tensor
    ) -> torch.Tensor:
        """Confidences (T,); below any threshold where the probe skips the head."""
        if not self._criterion.needs_logits:
            return self._criterion.of_hidden(exit_head, hidden, before)
        if exit_head.probe_floor is None:
            return by_logits
        return by_logits.masked_fill(exit_head.probe(hidden) < exit_head.probe_floor, -1.0)

    def _choose(
        self, vocabulary: Vocabulary, features: torch.Tensor, draws: list[Draw]
    ) -> tuple[np.ndarray, torch.Tensor]:
        """Token ids (T,) and confidences (T,) by a vocabulary's logits of features (T, F)."""
        ids: list[int] = []
        sure = []
        for rows in features.split(LOGIT_ROWS):
            logits = vocabulary(rows)
            sure.append(self._criterion.of_logits(logits))
            ids += [
                token.id for token in self._sampler.choose(logits, draws[len(ids) : len(ids) + len(rows)])
            ]
        return np.array(ids), torch.cat(sure)

    def _blocks_of(self, answer: Answer) -> int:
        return -(-(len(answer.prompt_token_ids) + len(answer.token_ids)) // self._block_size)


def _but_the_last(answer: Answer) -> NewSequence:
    """A sequence of prompt and answer without the last token, which predicts nothing."""
    ids = (answer.prompt_token_ids + answer.token_ids)[:-1]
    return NewSequence(answer.number, 0, ids, len(answer.prompt_token_ids), 0, sampling=answer.sampling)


def _draws(active: ActiveRows, depth: int) -> tuple[list[Draw], torch.Tensor]:
    """Draws of every answer token except the first, and their indices (T,) in the hidden states."""
    draws, asked = [], []
    for row, start in zip(active.rows, active.batch.query_starts.tolist(), strict=False):
        positions = range(row.sequence.num_prompt_tokens + 1, row.chunk.end + 1)
        draws += [Draw(row.sequence, at, depth) for at in positions]
        asked += [start + at - 1 for at in positions]
    return draws, torch.tensor(asked, device=active.hidden.device)
