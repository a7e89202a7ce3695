"""Text that the model generates from prompts: half of it greedy, half at a temperature.

Prompts go in waves, one file each. A wave is deterministic, so that an interrupted generation resumes with
the next wave and ends with the same text.
"""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from shard.messages import Sampling
from shard.offline import OfflineEngine
from shard.runner import ModelRunner
from shard.tune.prompts import PromptsUnusable, encode_prompts, is_held_out, shuffled
from shard.tune.text import Passage, load_passages, save_passages

WAVE_PROMPTS = 512
TEMPERATURES = (0.7, 1.0)


class AnswerPlan(msgspec.Struct, frozen=True):
    """The text to generate."""

    prompts: list[str]
    num_answers: int  # prompts are repeated until there are this many
    max_new_tokens: int = 256
    max_total_tokens: int = 4096  # prompt and answer
    batch_size: int = 128
    seed: int = 0


class _Task(msgspec.Struct, frozen=True):
    """One prompt to be answered."""

    number: int
    prompt: list[int]
    held_out: bool
    sampling: Sampling


def generate(
    runner: Callable[[], ModelRunner], model: Path, wanted: AnswerPlan, folder: Path
) -> Iterator[list[Passage]]:
    """Yields the text by waves; existing waves are read from the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = _tasks(model, wanted)
    for wave, first in enumerate(range(0, len(tasks), WAVE_PROMPTS)):
        path = folder / f"{wave:05}.npz"
        if not path.exists():
            engine = OfflineEngine(runner(), wanted.batch_size)
            save_passages(path, _answer(engine, tasks[first : first + WAVE_PROMPTS], wanted.max_new_tokens))
        yield load_passages(path)


def _answer(engine: OfflineEngine, tasks: list[_Task], max_new_tokens: int) -> list[Passage]:
    completions = engine.generate(
        [task.prompt for task in tasks], max_new_tokens, [task.sampling for task in tasks]
    )
    return [
        Passage(
            task.prompt + [token.id for token in completion.tokens],
            len(task.prompt),
            task.held_out,
            task.sampling.temperature > 0,
        )
        for task, completion in zip(tasks, completions, strict=True)
    ]


def _tasks(model: Path, wanted: AnswerPlan) -> list[_Task]:
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


def _sampling(prompt: str, turn: int, wanted: AnswerPlan) -> Sampling:
    """Sampling: greedy at every other turn, else at one of the temperatures, with the prompt's own seed."""
    if turn % 2 == 0:
        return Sampling()
    seed = zlib.crc32(f"{wanted.seed} {turn} {prompt}".encode())
    return Sampling(temperature=TEMPERATURES[turn // 2 % len(TEMPERATURES)], seed=seed)
