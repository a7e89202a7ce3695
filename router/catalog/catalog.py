"""The catalog: candidates whose models are on this machine, each at its depths.

Knows no shard. Whether a model can be loaded is found out by the shard that loads it.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from router.catalog import candidate_config
from router.catalog.model_shape import read_shape
from router.catalog.repository import Candidate, Choice, Repository
from router.catalog.served_model import Target
from router.settings.config import Config
from router.text.tokenizer import Tokenizer
from shard.messages import DrafterKind, Mode, ShardConfig

_SIMULATED_LAYERS = 30  # of a cost model without a number of layers


class UnknownCandidate(ValueError):
    """No such candidate, or not at that depth. The message lists the existing ones."""


class CatalogEntry(msgspec.Struct, frozen=True):
    """A candidate with its folder on this machine."""

    candidate: Candidate
    folder: Path  # of its model
    num_layers: int
    max_total_tokens: int | None = None  # the model's own limit; None: not stated
    unavailable_reason: str = ""  # why it cannot be served, in a sentence; "" if it can
    whole: ShardConfig | None = None  # settings at full depth by flags; None: by the repository

    @property
    def choices(self) -> list[Choice]:
        """Choices by depth."""
        own = self.candidate
        depths = [depth for depth in own.depths if depth < self.num_layers]
        return [Choice(own.name, depth) for depth in [*depths, *([self.num_layers] if own.whole else [])]]


class Catalog:
    """All candidates. The first one serves first."""

    def __init__(self, config: Config, repository: Repository, entries: Sequence[CatalogEntry]):
        self.repository = repository
        self._config = config
        self._entries = {entry.candidate.name: entry for entry in entries}
        self.tokenizers: dict[Path, Tokenizer] = {}

    @property
    def objective(self) -> str:
        """The objective of choosing among the candidates."""
        return self.repository.objective

    @property
    def entries(self) -> list[CatalogEntry]:
        return list(self._entries.values())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    @property
    def choices(self) -> list[Choice]:
        """All servable choices, by candidate and depth."""
        return [
            choice
            for entry in self._entries.values()
            if not entry.unavailable_reason
            for choice in entry.choices
        ]

    @property
    def max_total_tokens(self) -> int | None:
        """Greatest length of prompt and answer that every model accepts; None if none states a limit."""
        said = [entry.max_total_tokens for entry in self._entries.values() if not entry.unavailable_reason]
        return min((length for length in said if length is not None), default=None)

    def entry(self, name: str) -> CatalogEntry:
        """Raises `UnknownCandidate`."""
        entry = self._entries.get(name)
        if entry is None:
            raise UnknownCandidate(f"There is no candidate {name!r}; there are {_listed(self.names)}.")
        return entry

    def choose(self, name: str, depth: int | None) -> Choice:
        """A candidate at a depth, by default at the greatest. Raises `UnknownCandidate`."""
        entry = self.entry(name)
        if entry.unavailable_reason:
            raise UnknownCandidate(f"{name!r} cannot be served: {entry.unavailable_reason}")
        depths = [choice.depth for choice in entry.choices]
        if depth is None:
            return entry.choices[-1]
        if depth not in depths:
            raise UnknownCandidate(f"{name!r} has no depth {depth}; it has {_listed(map(str, depths))}.")
        return Choice(name, depth)

    async def target(self, choice: Choice) -> Target:
        """What a shard is to load for a choice. Raises `OSError` when the tokenizer cannot be read."""
        entry = self._entries[choice.candidate]
        if entry.folder not in self.tokenizers:
            self.tokenizers[entry.folder] = await asyncio.to_thread(self._load_tokenizer, entry)
        return Target(choice.candidate, self._shard_config(entry, choice), self.tokenizers[entry.folder])

    def first(self) -> Target:
        """The target that every shard starts with. Raises `OSError` likewise."""
        entry = next(iter(self._entries.values()))
        tokenizer = self.tokenizers[entry.folder] = self._load_tokenizer(entry)
        return Target(entry.candidate.name, self._shard_config(entry, entry.choices[-1]), tokenizer)

    def _load_tokenizer(self, entry: CatalogEntry) -> Tokenizer:
        return Tokenizer.load(entry.folder, self._config.tokenizer_config_path)

    def _shard_config(self, entry: CatalogEntry, choice: Choice) -> ShardConfig:
        repository = self.repository
        needs_energy = repository.objective == "energy" or repository.limits.watts is not None
        return msgspec.structs.replace(self._settings(entry, choice), needs_energy=needs_energy)

    def _settings(self, entry: CatalogEntry, choice: Choice) -> ShardConfig:
        is_whole = choice.depth == entry.num_layers
        if entry.whole is None:
            depth = None if is_whole else choice.depth
            return candidate_config.shard_config(self._config, entry.candidate, entry.folder, depth)
        return entry.whole if is_whole else _capped(entry.whole, choice.depth)


def entry_of(config: Config, candidate: Candidate, folder: Path) -> CatalogEntry:
    """The entry of a candidate whose model is in `folder`. Raises `OSError` or `ValueError` if unreadable."""
    folder = folder.absolute()
    if config.device == "sim":
        num_layers, longest = _simulated(config, candidate)
    else:
        shape = read_shape(folder)
        num_layers, longest = shape.num_layers, shape.max_positions
    if candidate_config.is_of_flags(config, candidate):
        return _entry_of_flags(config, candidate, CatalogEntry(candidate, folder, num_layers, longest))
    unavailable_reason = ""
    if candidate.exits is not None and not Path(candidate.exits).is_dir():
        unavailable_reason = f"its exits are missing: there is no folder {candidate.exits}."
    return CatalogEntry(candidate, folder, num_layers, longest, unavailable_reason)


def _entry_of_flags(config: Config, candidate: Candidate, entry: CatalogEntry) -> CatalogEntry:
    """The entry of a candidate made from flags: at full depth, and capped at each of its exits."""
    whole = config.shard_config(entry.folder, 0)
    most = min(entry.num_layers, whole.num_layers or entry.num_layers)
    is_capped = whole.exit_mode == Mode.CAPPED
    num_layers = entry.num_layers if is_capped else most
    deepest = most if is_capped else most - 1
    depths = tuple(layer for layer in _exit_layers(whole) if layer <= deepest)
    candidate = msgspec.structs.replace(candidate, depths=depths or candidate.depths)
    return msgspec.structs.replace(entry, candidate=candidate, num_layers=num_layers, whole=whole)


def _exit_layers(config: ShardConfig) -> list[int]:
    if config.exits is None:
        return config.exit_layers
    try:
        file = json.loads((Path(config.exits) / "exits.json").read_text(encoding="utf-8"))
        return [spec["layer"] for spec in file["exits"]]
    except (OSError, ValueError, LookupError, TypeError):
        return []  # the shard that loads them reports what is wrong


def _capped(whole: ShardConfig, depth: int) -> ShardConfig:
    """Settings of a model's first `depth` layers, with every token exiting at the last one."""
    layers = [depth] if whole.exit_layers else []
    drafters = [kind for kind in whole.drafters if kind is DrafterKind.TEXT]
    return msgspec.structs.replace(
        whole, num_layers=depth, exit_mode=Mode.CAPPED, exit_layers=layers, drafters=drafters
    )


def _simulated(config: Config, candidate: Candidate) -> tuple[int, int | None]:
    """Number of layers of a cost model, and its longest sequence (None: not stated)."""
    path = candidate.cost_model or config.cost_model
    costs = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    if not isinstance(costs, dict):
        raise ValueError(f"The cost model {path} cannot be read: it is no JSON object")
    return costs.get("num_layers", _SIMULATED_LAYERS), costs.get("max_total_tokens")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
