"""The model repository: a TOML file of candidates, objective, limits and quality floor.

Only this module knows the file's format. Whether a model can be loaded, and has the depths that the file
allows, is found out when it is loaded.
"""

from collections.abc import Iterable
from importlib import resources
from os.path import expanduser  # leaves a home that is not known as it is written
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from router.settings.options import parse_bytes
from router.settings.toml_lines import TomlError, read_toml
from router.text.prompt_class import PromptClass
from shard.messages import Mode

Objective = Literal["throughput", "latency", "energy"]
Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Name = Annotated[str, Meta(min_length=1)]


class Bytes(int):
    """Bytes; in the file a number, or text such as "2GiB"."""


class Choice(msgspec.Struct, frozen=True, order=True):
    """A candidate at a depth: what a shard may serve."""

    candidate: str
    depth: int

    def __str__(self) -> str:
        return f"{self.candidate} at {self.depth} layers"


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Static figures of a model. None: unknown."""

    parameters: Count | None = None
    memory_bytes: Bytes | None = None  # weights, loaded whole
    quality: float | None = None  # score in one benchmark for all candidates; higher is better


class Candidate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that may be served. At its full depth it runs in `mode`, below that capped."""

    name: Name
    model: Name  # as --model-id takes it; a relative path is meant from the file's folder
    revision: str | None = None
    exits: str | None = None  # folder of exits; likewise
    replay_exits: str | None = None  # file to draw exit layers from, for measurements; likewise
    mode: Mode = Mode.FULL
    depths: tuple[Count, ...] = ()  # layers at which it may be capped
    whole: bool = True  # may serve at its full depth
    prompts: tuple[PromptClass, ...] = ()  # that its exits were trained and certified for; (): all
    figures: Figures = Figures()
    cost_model: str | None = None  # step times, for --device sim


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Upper limits. None: no limit."""

    p95_ttft_ms: Positive | None = None
    p95_itl_ms: Positive | None = None
    memory_bytes: Bytes | None = None  # weights and KV cache of one shard
    watts: Positive | None = None  # of one shard


class Floor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Required quality of answers. Both bounds must hold: a poor model agrees with itself too."""

    agreement: Share = 0.95  # of a candidate's tokens with those of its own full depth
    quality: float | None = None  # of a candidate's figures


class Loop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of reassessment. The defaults are the HELIOS paper's where it states them."""

    enabled: bool = True  # false: watch, and change nothing
    shortlist: Count = 3  # candidates compared (K)
    evaluation_requests: Count = 5  # live requests for each, one candidate after the other
    evaluation_budget: Share = 0.05  # share of time spent on evaluation
    history_fresh_s: Positive = 3600.0  # age up to which a candidate's history replaces its evaluation
    breach_window: Count = 100  # tokens of a capped model, on each shard
    breach_limit: Count = 50  # breaches in that window; more lead to more layers or another model
    reassess_every: Count = 150  # requests
    hysteresis: Share = 0.1  # a replacement must cost less by at least this share
    max_swaps: Count = 4  # in `swap_window` requests, if only to lower the cost
    swap_window: Count = 1000  # requests of each shard
    amortise_over: Count = 150  # requests of each shard in which a swap must pay for itself
    drift_sensitivity: Positive = 8.0  # CUSUM threshold; lower detects drift earlier
    depth_by: Literal["cost", "share"] = "cost"  # share: shallowest exit with `depth_share` of tokens
    depth_share: Share = 0.75
    class_share: Share = 0.2  # share of the traffic from which a class of prompts counts in a decision


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """The models and rules of a deployment. `candidates[0]` at full depth serves first, if allowed."""

    candidates: tuple[Candidate, ...]
    objective: Objective = "throughput"
    limits: Limits = Limits()
    floor: Floor = Floor()
    loop: Loop = Loop()

    def find(self, name: str) -> Candidate:
        """Raises `KeyError`."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(name)


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    candidate: Annotated[tuple[Candidate, ...], Meta(min_length=1)]
    objective: Objective = "throughput"
    limits: Limits = Limits()
    floor: Floor = Floor()
    loop: Loop = Loop()


def is_good_enough(candidate: Candidate, floor: Floor) -> bool:
    """True if its static quality reaches the floor. Without a figure it fails any floor."""
    quality = candidate.figures.quality
    return floor.quality is None or (quality is not None and quality >= floor.quality)


def default_path() -> Path:
    """Path of the embedded model's repository, which comes with the package."""
    return Path(str(resources.files("router.catalog"))) / "embedded.toml"


def read_repository(path: Path) -> Repository:
    """The file's repository, its paths absolute. Raises `TomlError`: one sentence with line and field."""
    text = read_toml(path)
    try:
        file = msgspec.convert(text.values, _File, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise text.complain(error) from None
    repository = Repository(
        candidates=tuple(_located(candidate, path.absolute().parent) for candidate in file.candidate),
        objective=file.objective,
        limits=file.limits,
        floor=file.floor,
        loop=file.loop,
    )
    for place, sentence in _contradictions(repository):
        raise TomlError(f"{path}, line {text.line_of(place)}: {place[-1]} {sentence}")
    return repository


def _decode(kind: type, value: Any) -> Any:
    if kind is Bytes and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return Bytes(parse_bytes(str(value)))
        except (KeyError, ValueError, OverflowError):
            pass
    raise ValueError(f"Expected a number of bytes such as 512MiB, got {value!r}")


def _located(candidate: Candidate, folder: Path) -> Candidate:
    model = folder / Path(expanduser(candidate.model))
    return msgspec.structs.replace(
        candidate,
        model=str(model) if model.exists() else candidate.model,
        exits=_from(folder, candidate.exits),
        replay_exits=_from(folder, candidate.replay_exits),
        cost_model=_from(folder, candidate.cost_model),
    )


def _from(folder: Path, path: str | None) -> str | None:
    return None if path is None else str((folder / Path(expanduser(path))).resolve())


def _contradictions(repository: Repository) -> Iterable[tuple[tuple[str | int, ...], str]]:
    """(field, what is wrong with it) of fields that contradict each other."""
    names: set[str] = set()
    for index, candidate in enumerate(repository.candidates):
        at = ("candidate", index)
        if candidate.name in names:
            yield (*at, "name"), f"{candidate.name!r} is given twice: each candidate needs its own."
        names.add(candidate.name)
        yield from (((*at, field), sentence) for field, sentence in _candidate_contradictions(candidate))
    if not any(is_good_enough(candidate, repository.floor) for candidate in repository.candidates):
        yield (
            ("floor", "quality"),
            f"is {repository.floor.quality}, but no candidate's figures.quality says that it reaches that.",
        )
    if repository.loop.breach_limit > repository.loop.breach_window:
        yield ("loop", "breach_limit"), f"must be at most breach_window, {repository.loop.breach_window}."


def _candidate_contradictions(candidate: Candidate) -> Iterable[tuple[str, str]]:
    if candidate.mode == Mode.CAPPED:
        yield "mode", "capped is what every depth is served in: name depths, and the mode of the whole model."
    if list(candidate.depths) != sorted(set(candidate.depths)):
        yield "depths", f"must rise, not {list(candidate.depths)}."
    if not candidate.depths and not candidate.whole:
        yield "whole", f"is false, but depths is empty: {candidate.name!r} could never serve."
    has_exits = candidate.exits is not None or candidate.cost_model is not None
    if not has_exits and (candidate.depths or candidate.mode not in (Mode.FULL, Mode.SPECULATIVE)):
        field = "depths" if candidate.depths else "mode"
        yield field, "needs exits, the folder that says where the model can be left."
