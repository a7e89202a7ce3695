"""A router of a few lines for shards whose models change: every sequence to its end, whatever happens."""

import msgspec

from shard.messages import (
    Commit,
    Committed,
    NewSequence,
    Prepare,
    Prepared,
    ShardConfig,
    Step,
    StepOutput,
    SwapFailed,
    Work,
)
from shard.served_models import ServedModels


class Asked(msgspec.Struct):
    """One prompt and its results."""

    new: NewSequence
    tokens: list[int] = []
    ran_on: list[int] = []  # the epoch of each attempt
    is_over: bool = False
    num_attempts: int = 0

    def attempt(self, epoch: int) -> NewSequence:
        """The next attempt, on the model of an epoch."""
        self.num_attempts += 1
        self.ran_on.append(epoch)
        return msgspec.structs.replace(
            self.new,
            attempt=self.num_attempts,
            token_ids=self.new.token_ids + self.tokens,
            epoch=epoch,
        )


class Driver:
    """Steps over everything asked so far."""

    def __init__(self, shard: ServedModels, chunk: int = 16):
        self.shard = shard
        self.asked: dict[int, Asked] = {}
        self.epoch = 0  # of the last one prepared
        self.outputs: list[StepOutput] = []
        self._chunk = chunk
        self._waiting: list[int] = []

    def ask(self, *prompts: NewSequence) -> None:
        for new in prompts:
            self.asked[new.id] = Asked(new)
            self._waiting.append(new.id)

    def step(self, max_batch_size: int = 1000) -> StepOutput:
        """Step all sequences in the order of ids; waiting ones start on the newest model or on their own."""
        alive = (
            {self.shard.newest, *(report.epoch for report in self.outputs[-1].older)}
            if (self.outputs)
            else {self.shard.newest}
        )
        room = max_batch_size - sum(not a.is_over for a in self.asked.values()) + len(self._waiting)
        starting, self._waiting = self._waiting[:room], self._waiting[room:]
        fresh = []
        for id in starting:
            before = self.asked[id].ran_on[-1:]
            fresh.append(
                self.asked[id].attempt(before[0] if before and before[0] in alive else self.shard.newest)
            )
        running = [a for id, a in self.asked.items() if not a.is_over and id not in self._waiting]
        work = [Work(asked.new.id, asked.num_attempts, self._chunk) for asked in running]
        output = self.shard.run(Step(len(self.outputs), work, fresh))
        self.outputs.append(output)
        for made in output.outputs:
            self.asked[made.id].tokens += [token.id for token in made.tokens]
            self.asked[made.id].is_over = made.finish is not None
        self._waiting = sorted([id for id, _ in (*output.preempted, *output.gone)] + self._waiting)
        return output

    def finish(self) -> None:
        """Step until all is over."""
        before = len(self.outputs)
        while any(not asked.is_over for asked in self.asked.values()):
            self.step()
            assert len(self.outputs) < before + 10_000, "no progress"

    def prepare(self, config: ShardConfig) -> Prepared | SwapFailed:
        self.epoch += 1
        return self.shard.prepare(Prepare(self.epoch, config))

    def commit(self) -> Committed | SwapFailed:
        return self.shard.commit(Commit(self.epoch))

    def change(self, config: ShardConfig) -> Committed:
        """Prepare and commit; raises if either fails."""
        prepared = self.prepare(config)
        assert isinstance(prepared, Prepared), prepared
        committed = self.commit()
        assert isinstance(committed, Committed), committed
        return committed
