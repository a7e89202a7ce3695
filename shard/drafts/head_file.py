"""The file of a trained draft head: `drafter.safetensors` in a folder, with its description as metadata."""

from pathlib import Path

import msgspec
from safetensors import safe_open

from shard.messages import EMBEDDED_MODEL, ShardConfig
from shard.models.shape import Shape

FILE = "drafter.safetensors"
METADATA = "drafter"  # the key of the description, which is JSON
VOCABULARY = "vocabulary.safetensors"
_EMBEDDED = Path(__file__).parents[1] / "exits_embedded"


class HeadFileError(ValueError):
    """A head that does not fit its model; one sentence."""


class HeadDescription(msgspec.Struct, frozen=True):
    """What a head reads, and how it chooses."""

    depths: list[int]  # numbers of layers behind which it reads hidden states, besides `last`
    last: int  # the model's number of layers
    hidden_size: int = 0  # 0: as its tensors have it
    rerank: int | None = None  # likeliest tokens of its low-rank product that the LM head decides on
    vocabulary: str = VOCABULARY  # relative path of that product's larger factor
    acceptance: dict[str, list[float]] = {}  # by text held out: of the first, second, ... token of a draft

    @property
    def layers(self) -> tuple[int, ...]:
        """All numbers of layers behind which it reads hidden states."""
        return (*self.depths, self.last)


def head_folder(config: ShardConfig) -> Path:
    """Where the head of a configuration's model is: as told, beside its exits, or with the project.

    Raises `HeadFileError` if there is none.
    """
    told = [Path(folder) for folder in (config.draft_head,) if folder]
    beside = [folder for path in (config.exits,) if path for folder in (Path(path), Path(path).parent)]
    shipped = [_EMBEDDED] if Path(config.model).name == EMBEDDED_MODEL else []
    for folder in told or [*beside, *shipped]:
        if (folder / FILE).is_file():
            return folder
    where = f"in {told[0]}" if told else f"for {config.model}"
    raise HeadFileError(
        f"there is no {FILE} {where}: make one with `helios tune MODEL --drafter`, name its folder with "
        "--drafter-head, or leave 'head' out of the drafters"
    )


def read_description(folder: Path) -> HeadDescription:
    """The description in a head's file. Raises `HeadFileError`."""
    path = folder / FILE
    with safe_open(path, "pt") as file:
        found = (file.metadata() or {}).get(METADATA)
    if found is None:
        raise HeadFileError(f"{path} has no description of a draft head in its metadata")
    try:
        return msgspec.json.decode(found, type=HeadDescription)
    except msgspec.DecodeError as error:
        raise HeadFileError(f"the metadata of {path}: {error}") from None


def check_description(head: HeadDescription, shape: Shape) -> None:
    """Raises `HeadFileError` unless the head was made for a model of this shape."""
    if head.last != shape.num_layers:
        raise HeadFileError(
            f"the draft head was made for a model of {head.last} layers, not {shape.num_layers}"
        )
    if head.hidden_size not in (0, shape.hidden_size):
        raise HeadFileError(
            f"the draft head was made for hidden size {head.hidden_size}, not {shape.hidden_size}"
        )
    if list(head.layers) != sorted(set(head.layers)) or head.layers[0] < 1:
        raise HeadFileError(
            f"the draft head's depths must rise from at least 1 to below {head.last}, not {head.depths}"
        )
