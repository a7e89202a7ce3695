"""Random sequences of equal context length that decode together; both benchmarks time them."""

import random

from shard.messages import NewSequence, StepOutput
from shard.offline import STEP_TOKENS, OfflineEngine
from shard.runner import ModelRunner

_ENDLESS = 1 << 20


class Lockstep:
    """`batch_size` sequences of `context` tokens. Raises `MemoryError` when one is preempted."""

    def __init__(self, runner: ModelRunner, batch_size: int, context: int):
        self._engine = OfflineEngine(runner, batch_size)
        self._ids = range(batch_size)
        self._context = context
        draw, vocab_size = random.Random(0), runner.decoder.shape.vocab_size
        for i in self._ids:
            prompt = [draw.randrange(vocab_size) for _ in range(context)]
            self._engine.add(NewSequence(i, 0, prompt, context, _ENDLESS, ignore_eos=True))

    def prefill(self) -> None:
        """Run all prompts until every sequence has its first token."""
        group = max(1, STEP_TOKENS // self._context)
        num_steps = -(-self._context // STEP_TOKENS)
        for first in range(0, len(self._ids), group):
            for _ in range(num_steps):
                self._run(self._ids[first : first + group])

    def step(self) -> StepOutput:
        """Decode one token of each sequence, or several with drafts."""
        return self._run(None)

    def end(self) -> None:
        """Free the blocks."""
        self._engine.abort_all()

    def _run(self, ids: range | None) -> StepOutput:
        output = self._engine.step(ids)
        if output.preempted:
            raise MemoryError(
                "the KV cache is too small for this batch: give --kv-cache-bytes a larger value"
            )
        return output
