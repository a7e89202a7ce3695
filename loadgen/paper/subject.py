"""The subjects of the experiment: a model, its exits, and HELIOS's candidates."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from loadgen.cli.units import BadQuantity
from loadgen.paper.files import write_exits, write_replay, write_repository
from loadgen.paper.options import HeliosOptions, Size
from loadgen.paper.published import EASY_SHARES, HARD_SHARES
from loadgen.traffic.datasets import read_dataset

PACKAGE_ROOT = Path(__file__).parents[2]
EMBEDDED_REPOSITORY = PACKAGE_ROOT / "router" / "catalog" / "embedded.toml"
SHAPES = {"opt-1.3b": 24, "opt-6.7b": 32}  # layers; the paper's small and large model
QUARTERS = (0.25, 0.5, 0.75)
REPLAYED_CLASSES = ("chat", "extract", "chat")  # short and long prompts, distinguished by the replay
LONG_PROMPT = 56  # tokens: longer than any chat prompt, shorter than any to extract from
REAL_CLASSES = ("chat", "code", "extract", "story", "chat")


class Subject(msgspec.Struct, frozen=True):
    """One part of the experiment. Flags are those of `helios serve`."""

    name: str
    model: str
    num_layers: int | None  # None: unknown before loading
    early_exit: tuple[str, ...]  # flags of exits, for all modes with early exits
    depths: tuple[int, ...]
    repository: Path
    classes: tuple[str, ...]  # classes of prompts in order
    dataset: str | None = None  # file of prompts; None: the shipped ones
    is_replay: bool = False


def real_weights(options: HeliosOptions, size: Size, folder: Path) -> Subject:
    """The embedded model and its variants, or the flags' model and exits. Raises as its files' readers."""
    candidates = _named_by_flags(options) if options.exits else _embedded(EMBEDDED_REPOSITORY)
    variants = [candidate for candidate in candidates if candidate.get("exits")]
    if not variants:
        raise BadQuantity("there is no folder of exits to leave early by: name one with --exits")
    settings = {"floor": {"agreement": options.floor}, "loop": _loop(size)}
    repository = write_repository(folder / "real.toml", settings, candidates)
    return Subject(
        name="real weights",
        model=options.model_id,
        num_layers=None,
        early_exit=("--exits", variants[0]["exits"]),
        depths=tuple(variants[0]["depths"]),
        repository=repository,
        classes=_classes(options.dataset),
        dataset=options.dataset,
    )


def replayed_exits(size: Size, folder: Path) -> Subject:
    """Random weights of the paper's two models, narrower by a factor, with exits after each quarter."""
    candidates = [_replayed_candidate(shape, size, folder) for shape in SHAPES]
    small = candidates[0]
    settings = {"floor": {"agreement": 0.0}, "loop": _loop(size)}
    return Subject(
        name="exit replay",
        model=small["model"],
        num_layers=SHAPES["opt-1.3b"],
        early_exit=("--exits", small["exits"], "--replay-exits", small["replay_exits"]),
        depths=tuple(small["depths"]),
        repository=write_repository(folder / "replay.toml", settings, candidates),
        classes=REPLAYED_CLASSES,
        is_replay=True,
    )


def _replayed_candidate(shape: str, size: Size, folder: Path) -> dict[str, Any]:
    num_layers = SHAPES[shape]
    layers = [round(share * num_layers) for share in QUARTERS]
    easy, hard = (
        {round(part * num_layers): share for part, share in shares.items()}
        for shares in (EASY_SHARES, HARD_SHARES)
    )
    replay = write_replay(folder / f"{shape}.replay.json", easy, hard, LONG_PROMPT)
    return {
        "name": shape,
        "model": f"random:{shape}" + (f":{size.narrowing}" if size.narrowing > 1 else ""),
        "exits": str(write_exits(folder / shape, layers, num_layers)),
        "replay_exits": str(replay),
        "mode": "per_row",
        "depths": layers,
    }


def _classes(dataset: str | None) -> tuple[str, ...]:
    """The classes of a file, in its own order. Raises `BadQuantity`, OSError."""
    if dataset is None:
        return REAL_CLASSES
    return tuple(dict.fromkeys(prompt.group for prompt in read_dataset(Path(dataset))))


def _loop(size: Size) -> dict[str, Any]:
    return {"reassess_every": size.reassess_every, "breach_window": size.breach_window}


def _embedded(path: Path) -> list[dict[str, Any]]:
    """The candidates of the default repository, with absolute paths."""
    found: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["candidate"]
    return [
        candidate
        | ({"exits": str((path.parent / candidate["exits"]).resolve())} if "exits" in candidate else {})
        for candidate in found
    ]


def _named_by_flags(options: HeliosOptions) -> list[dict[str, Any]]:
    folders = [Path(text).expanduser().resolve() for text in options.exits]
    whole: dict[str, Any] = {"name": "full", "model": options.model_id}
    return [whole, *(_variant(options.model_id, folder) for folder in folders)]


def _variant(model: str, folder: Path) -> dict[str, Any]:
    """A candidate by an exit folder. Raises `BadQuantity` without exits."""
    try:
        described: Mapping[str, Any] = msgspec.json.decode((folder / "exits.json").read_bytes())
        depths = sorted(spec["layer"] for spec in described["exits"])
    except (OSError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise BadQuantity(f"{folder} is no folder of exits: {error}") from None
    return {"name": folder.name, "model": model, "exits": str(folder), "mode": "per_row", "depths": depths}
