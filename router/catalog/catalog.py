"""What may be served here: candidates whose models lie on this machine, each at the depths that it has.

Knows no shard: whether a model can be loaded is found out by the one that is asked to.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from router.catalog import candidate_config
from router.catalog.repository import Candidate, Choice, Repository
from router.catalog.served_model import Target
from router.settings.config import Config
from router.text.tokenizer import Tokenizer
from shard.messages import Mode, ShardConfig

_SIMULATED_LAYERS = 30  # of a cost model that does not say


class NotOffered(ValueError):
    """There is no such candidate, or not at that depth. The message names those there are."""


class Dish(msgspec.Struct, frozen=True):
    """A candidate as it is here."""

    candidate: Candidate
    folder: Path  # of its model
    num_layers: int
    max_total_tokens: int | None = None  # the model's own limit; None: it does not say
    trouble: str = ""  # why it cannot be served, in a sentence; "": nothing is known against it
    whole: ShardConfig | None = None  # as flags ask for it; None: as the repository does

    @property
    def choices(self) -> list[Choice]:
        """By depth."""
        own = self.candidate
        depths = [depth for depth in own.depths if depth < self.num_layers]
        return [Choice(own.name, depth) for depth in [*depths, *([self.num_layers] if own.whole else [])]]


class Menu:
    """All candidates. The first one serves first."""

    def __init__(self, config: Config, repository: Repository, dishes: Sequence[Dish]):
        self.repository = repository
        self._config = config
        self._dishes = {dish.candidate.name: dish for dish in dishes}
        self._tokenizers: dict[Path, Tokenizer] = {}

    @property
    def objective(self) -> str:
        """What they are chosen for."""
        return self.repository.objective

    @property
    def dishes(self) -> list[Dish]:
        return list(self._dishes.values())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._dishes)

    @property
    def choices(self) -> list[Choice]:
        """What can be served, by candidate and depth."""
        return [choice for dish in self._dishes.values() if not dish.trouble for choice in dish.choices]

    @property
    def max_total_tokens(self) -> int | None:
        """The longest prompt and answer that every model takes; None: none of them says."""
        said = [dish.max_total_tokens for dish in self._dishes.values() if not dish.trouble]
        return min((length for length in said if length is not None), default=None)

    def dish(self, name: str) -> Dish:
        """Raises `NotOffered`."""
        dish = self._dishes.get(name)
        if dish is None:
            raise NotOffered(f"There is no candidate {name!r}; there are {_listed(self.names)}.")
        return dish

    def choose(self, name: str, depth: int | None) -> Choice:
        """A candidate at a depth, by default at the greatest. Raises `NotOffered`."""
        dish = self.dish(name)
        if dish.trouble:
            raise NotOffered(f"{name!r} cannot be served: {dish.trouble}")
        depths = [choice.depth for choice in dish.choices]
        if depth is None:
            return dish.choices[-1]
        if depth not in depths:
            raise NotOffered(f"{name!r} has no depth {depth}; it has {_listed(map(str, depths))}.")
        return Choice(name, depth)

    async def target(self, choice: Choice) -> Target:
        """What a shard is to be asked for. Raises `OSError` when the tokenizer cannot be read."""
        dish = self._dishes[choice.candidate]
        if dish.folder not in self._tokenizers:
            self._tokenizers[dish.folder] = await asyncio.to_thread(self._load_tokenizer, dish)
        return Target(choice.candidate, self._shard_config(dish, choice), self._tokenizers[dish.folder])

    def first(self) -> Target:
        """What every shard starts with. Raises `OSError` likewise."""
        dish = next(iter(self._dishes.values()))
        tokenizer = self._tokenizers[dish.folder] = self._load_tokenizer(dish)
        return Target(dish.candidate.name, self._shard_config(dish, dish.choices[-1]), tokenizer)

    def _load_tokenizer(self, dish: Dish) -> Tokenizer:
        return Tokenizer.load(dish.folder, self._config.tokenizer_config_path)

    def _shard_config(self, dish: Dish, choice: Choice) -> ShardConfig:
        repository = self.repository
        needs_energy = repository.objective == "energy" or repository.limits.watts is not None
        return msgspec.structs.replace(self._settings(dish, choice), needs_energy=needs_energy)

    def _settings(self, dish: Dish, choice: Choice) -> ShardConfig:
        is_whole = choice.depth == dish.num_layers
        if dish.whole is None:
            depth = None if is_whole else choice.depth
            return candidate_config.shard_config(self._config, dish.candidate, dish.folder, depth)
        return dish.whole if is_whole else _capped(dish.whole, choice.depth)


def dish_of(config: Config, candidate: Candidate, folder: Path) -> Dish:
    """A candidate whose model lies in `folder`. Raises `OSError` and `ValueError` when it cannot be read."""
    folder = folder.absolute()
    num_layers, longest = _simulated(config, candidate) if config.device == "sim" else _shape(folder)
    if candidate_config.is_of_flags(config, candidate):
        return _dish_of_flags(config, candidate, Dish(candidate, folder, num_layers, longest))
    trouble = ""
    if candidate.exits is not None and not Path(candidate.exits).is_dir():
        trouble = f"its exits are missing: there is no folder {candidate.exits}."
    return Dish(candidate, folder, num_layers, longest, trouble)


def _dish_of_flags(config: Config, candidate: Candidate, dish: Dish) -> Dish:
    """As it is asked for when whole, and capped at each of its exits."""
    whole = config.shard_config(dish.folder, 0)
    most = min(dish.num_layers, whole.num_layers or dish.num_layers)
    is_capped = whole.exit_mode == Mode.CAPPED
    num_layers = dish.num_layers if is_capped else most
    deepest = most if is_capped else most - 1
    depths = tuple(layer for layer in _exit_layers(whole) if layer <= deepest)
    candidate = msgspec.structs.replace(candidate, depths=depths or candidate.depths)
    return msgspec.structs.replace(dish, candidate=candidate, num_layers=num_layers, whole=whole)


def _exit_layers(config: ShardConfig) -> list[int]:
    if config.exits is None:
        return config.exit_layers
    try:
        file = json.loads((Path(config.exits) / "exits.json").read_text(encoding="utf-8"))
        return [spec["layer"] for spec in file["exits"]]
    except (OSError, ValueError, LookupError, TypeError):
        return []  # a shard that loads them says what is wrong, and in which words


def _capped(whole: ShardConfig, depth: int) -> ShardConfig:
    """The first layers of a model, every token leaving at the last of them."""
    layers = [depth] if whole.exit_layers else []
    return msgspec.structs.replace(whole, num_layers=depth, exit_mode=Mode.CAPPED, exit_layers=layers)


def _simulated(config: Config, candidate: Candidate) -> tuple[int, int | None]:
    """Layers of a cost model and its longest sequence; None: it does not say."""
    path = candidate.cost_model or config.cost_model
    costs = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    if not isinstance(costs, dict):
        raise ValueError(f"The cost model {path} cannot be read: it is no JSON object")
    return costs.get("num_layers", _SIMULATED_LAYERS), costs.get("max_total_tokens")


def _shape(folder: Path) -> tuple[int, int | None]:
    """Layers of a model and its longest sequence."""
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    num_layers = facts.get("num_hidden_layers") or facts["n_layer"]
    return num_layers, facts.get("max_position_embeddings") or facts.get("n_positions")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
