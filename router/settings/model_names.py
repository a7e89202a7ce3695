"""Names by which clients may call a model. They never show its path on this machine."""

import re
from os.path import exists, expanduser  # leaves a home that is not known as it is written
from pathlib import Path

from shard.messages import EMBEDDED_MODEL

_EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CACHED = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")  # a folder of huggingface_hub's cache


def short_name(model_id: str) -> str:
    """A hub id unchanged; the last part of a path."""
    if not model_id.startswith(("/", ".", "~")) and not model_id.endswith(".gguf"):
        return model_id
    path = Path(expanduser(model_id)).absolute()
    return (path.stem if path.suffix == ".gguf" else path.name) or "model"


def hub_id(model_id: str) -> str | None:
    """The model's id on the hub, if its name or its cache folder tells."""
    if model_id in (EMBEDDED_MODEL, "embedded"):
        return _EMBEDDED_HUB_ID
    for part in Path(model_id).parts:
        if cached := _CACHED.fullmatch(part):
            return f"{cached['owner']}/{cached['name']}"
    is_here = model_id.startswith((".", "~")) or model_id.endswith(".gguf") or exists(model_id)
    return model_id if _HUB_ID.fullmatch(model_id) and not is_here else None
