"""Text that a model makes itself, from prompts: half of it greedy, half drawn at a temperature.

Prompts go in waves. A wave is one file and is always generated in the same way, so that what is interrupted
goes on with the next wave and ends with the same text.
"""

import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from shard.messages import NewSequence, Sampling, SequenceOutput, Step, Work
from shard.runner import ModelRunner
from shard.tune.prompts import PromptsUnusable, encode_prompts, is_held_out, shuffled
from shard.tune.text import Passage, load_passages, save_passages

WAVE_PROMPTS = 512
PREFILL_CHUNK = 128  # prompt tokens of one sequence in one step
TEMPERATURES = (0.7, 1.0)


class Generation(msgspec.Struct, frozen=True):
    """What is to be generated."""

    prompts: list[str]
    num_answers: int  # prompts are gone through again and again until there are so many
    max_new_tokens: int = 256
    max_total_tokens: int = 4096  # prompt and answer
    batch_size: int = 128
    seed: int = 0


class _Task(msgspec.Struct):
    """One prompt on its way to an answer."""

    number: int
    prompt: list[int]
    held_out: bool
    sampling: Sampling
    answer: list[int] = []
    attempt: int = 0

    def passage(self) -> Passage:
        return Passage(
            self.prompt + self.answer, len(self.prompt), self.held_out, self.sampling.temperature > 0
        )


class Talk:
    """A runner at full depth that answers tasks, `batch_size` at a time."""

    def __init__(self, runner: ModelRunner, batch_size: int, max_new_tokens: int):
        self._runner = runner
        self._batch_size = batch_size
        self._max_new_tokens = max_new_tokens
        self._num_steps = 0

    def answer(self, tasks: list[_Task]) -> None:
        """Run every task to its end."""
        waiting, running = deque(tasks), dict[int, _Task]()
        while waiting or running:
            new = []
            while waiting and len(running) < self._batch_size:
                task = waiting.popleft()
                running[task.number] = task
                new.append(self._sequence(task))
            self._num_steps += 1
            work = [Work(task.number, task.attempt, PREFILL_CHUNK) for task in running.values()]
            output = self._runner.run(Step(self._num_steps, work, new))
            for made in output.outputs:
                _take(running, made)
            for number, _ in output.preempted:
                task = running.pop(number)
                task.attempt += 1
                waiting.appendleft(task)

    def _sequence(self, task: _Task) -> NewSequence:
        ids = task.prompt + task.answer
        return NewSequence(
            task.number,
            task.attempt,
            ids,
            len(task.prompt),
            self._max_new_tokens,
            sampling=task.sampling,
        )


def _take(running: dict[int, _Task], made: SequenceOutput) -> None:
    running[made.id].answer += [token.id for token in made.tokens]
    if made.finish is not None:
        del running[made.id]


def generate(
    runner: Callable[[], ModelRunner], model: Path, wanted: Generation, folder: Path
) -> Iterator[list[Passage]]:
    """The text wave by wave; what is in the folder already is read from there."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = _tasks(model, wanted)
    for wave, first in enumerate(range(0, len(tasks), WAVE_PROMPTS)):
        path = folder / f"{wave:05}.npz"
        if not path.exists():
            part = tasks[first : first + WAVE_PROMPTS]
            Talk(runner(), wanted.batch_size, wanted.max_new_tokens).answer(part)
            save_passages(path, [task.passage() for task in part])
        yield load_passages(path)


def _tasks(model: Path, wanted: Generation) -> list[_Task]:
    prompts = shuffled(wanted.prompts, wanted.seed)
    encoded = encode_prompts(model, prompts)
    longest = max(map(len, encoded))
    if longest + wanted.max_new_tokens > wanted.max_total_tokens:
        raise PromptsUnusable(
            f"A prompt has {longest} tokens: with an answer of {wanted.max_new_tokens} "
            f"at most {wanted.max_total_tokens} fit."
        )
    tasks = []
    for number in range(wanted.num_answers):
        turn, i = divmod(number, len(prompts))
        sampling = _sampling(prompts[i], i + turn, wanted)
        tasks.append(_Task(number, encoded[i], is_held_out(prompts[i]), sampling))
    return tasks


def _sampling(prompt: str, turn: int, wanted: Generation) -> Sampling:
    """Greedy at every other turn, else at one of the temperatures, with noise of the prompt's own."""
    if turn % 2 == 0:
        return Sampling()
    seed = zlib.crc32(f"{wanted.seed} {turn} {prompt}".encode())
    return Sampling(temperature=TEMPERATURES[turn // 2 % len(TEMPERATURES)], seed=seed)
