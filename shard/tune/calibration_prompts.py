"""Prompts for calibration, disjoint from those used in tuning.

Each shipped list has a companion with other topics in the same templates.
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from shard.tune.prompts import FOLDER, SHIPPED, PromptsUnusable, encode_prompts, read_prompts, shuffled


class Sample(msgspec.Struct, frozen=True):
    """Prompts as token ids: some for the path, and disjoint ones to test it."""

    name: str
    digest: str  # of all prompts
    for_survey: list[list[int]]
    for_test: list[list[int]]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.for_survey + self.for_test))


def draw_sample(model: Path, name: str, num_survey: int, num_test: int, seed: int) -> Sample:
    """Prompts of a shipped list (`chat`, `code`) or of a file. Raises `PromptsUnusable`."""
    prompts = _prompts(name)
    if len(prompts) < num_survey + num_test:
        raise PromptsUnusable(
            f"{name} holds {len(prompts)} prompts, but {num_test} are to be answered and {num_survey} others "
            "surveyed before: give more prompts, or smaller --num-sequences and --num-survey."
        )
    chosen = shuffled(prompts, seed)[: num_survey + num_test]
    encoded = encode_prompts(model, chosen)
    digest = hashlib.sha256(msgspec.json.encode([chosen, encoded])).hexdigest()[:12]
    return Sample(Path(name).name, digest, encoded[:num_survey], encoded[num_survey:])


def _prompts(name: str) -> list[str]:
    if name not in SHIPPED:
        return read_prompts(name)
    templates = {group["name"]: group["templates"] for group in _groups(FOLDER / f"{name}.toml")}
    prompts = [
        template.format(topic)
        for group in _groups(FOLDER / "calibration" / f"{name}.toml")
        for template in templates[group["name"]]
        for topic in group["topics"]
    ]
    return list(dict.fromkeys(prompts))


def _groups(path: Path) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = tomllib.loads(path.read_text())["group"]
    return groups
