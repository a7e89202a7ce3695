"""Exit replay: on the real engine, exit layers are drawn from a given distribution instead of by confidence.

Gives true speeds for models without trained exits at hand. The text is no model's answer, and every place
that shows its numbers says so.
"""

from pathlib import Path

import msgspec

from shard.engine.sampler import noise_key
from shard.engine.sequence import Sequence
from shard.exits.exit_heads import ExitError


class LongPrompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Other shares for prompts from a length on."""

    min_prompt_tokens: int
    shares: dict[int, float]


class ReplayFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A distribution of exit layers. The rest of the shares to 1 goes to full depth."""

    shares: dict[int, float]  # by exit layer
    autocorrelation: float = 0.0  # probability that a token repeats the previous token's exit
    source: str = ""
    long_prompts: list[LongPrompts] = []  # the last one that a prompt is long enough for applies


class Replay:
    """Draws an exit layer for each token: a pure function of sequence and position.

    `exit_layers` must contain all drawn layers; None allows any.
    """

    def __init__(self, file: ReplayFile, exit_layers: list[int] | None, num_layers: int):
        for shares in (file.shares, *(long.shares for long in file.long_prompts)):
            _check(shares)
            unknown = sorted(set(shares) - {*(exit_layers or shares), num_layers})
            if unknown:
                raise ExitError(f"replayed exit layer {unknown[0]} is not among the exits {exit_layers}")
        if not 0 <= file.autocorrelation < 1:
            raise ExitError(f"autocorrelation must be in [0, 1), not {file.autocorrelation:g}")
        bands = sorted((long.min_prompt_tokens, long.shares) for long in file.long_prompts)
        self._bands = [(least, sorted(shares.items())) for least, shares in [(0, file.shares), *bands]]
        self._autocorrelation = file.autocorrelation
        self._num_layers = num_layers

    def layer(self, sequence: Sequence, position: int) -> int:
        """The exit layer of the token at a position; the number of layers means full depth."""
        while (
            position > sequence.num_prompt_tokens
            and self._uniform(sequence, position, 1) < self._autocorrelation
        ):
            position -= 1
        draw = self._uniform(sequence, position, 0)
        for layer, share in self._shares(sequence):
            if draw < share:
                return layer
            draw -= share
        return self._num_layers

    def _shares(self, sequence: Sequence) -> list[tuple[int, float]]:
        return [shares for least, shares in self._bands if least <= sequence.num_prompt_tokens][-1]

    def _uniform(self, sequence: Sequence, position: int, stream: int) -> float:
        return noise_key(sequence.id * 2 + stream + 0x5EED, position)[stream] / 2**32


def _check(shares: dict[int, float]) -> None:
    total = sum(shares.values())
    if any(share < 0 for share in shares.values()) or total > 1 + 1e-9:
        raise ExitError(f"replayed shares must be at least 0 and sum to at most 1, not {total:g}")


def read_replay(path: Path) -> ReplayFile:
    """Read a replay file. Raises `ExitError` for an invalid one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ReplayFile)
    except OSError as error:
        raise ExitError(f"cannot read {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ExitError(f"{path}: {error}") from None
