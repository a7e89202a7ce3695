"""Writes files for the servers: a repository, exits without weights, exits to replay."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

Table = Mapping[str, Any]
Shares = Mapping[int, float]  # by exit layer


def write_exits(folder: Path, layers: Sequence[int], num_layers: int) -> Path:
    """Write exits that use the model's own norm and head."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {"num_layers": num_layers, "exits": [{"layer": layer} for layer in layers]}
    (folder / "exits.json").write_bytes(msgspec.json.encode(described))
    return folder


def write_replay(path: Path, shares: Shares, long_shares: Shares, min_prompt_tokens: int) -> Path:
    """Write a replay file with shares by layer, and other shares for long prompts."""
    long_prompts = [{"min_prompt_tokens": min_prompt_tokens, "shares": long_shares}]
    file = {"shares": shares, "long_prompts": long_prompts, "source": "arXiv 2504.10724, OPT-1.3B"}
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(file, str_keys=True)))
    return path


def write_repository(path: Path, settings: Mapping[str, Table], candidates: Sequence[Table]) -> Path:
    """Write a repository file: `settings` are its tables `floor` and `loop`, `candidates` its candidates."""
    tables = [(f"[{name}]", table) for name, table in settings.items()]
    tables += [("[[candidate]]", candidate) for candidate in candidates]
    path.write_text("\n".join(f"{head}\n{_lines(table)}" for head, table in tables), encoding="utf-8")
    return path


def _lines(table: Table) -> str:
    return "".join(f"{name} = {_toml(value)}\n" for name, value in table.items())


def _toml(value: Any) -> str:
    """A value in TOML, which writes texts, numbers and lists of them as JSON does."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml(inner)}" for name, inner in value.items()) + " }"
    return msgspec.json.encode(value).decode()
