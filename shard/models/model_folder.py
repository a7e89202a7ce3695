"""What a model folder must hold to be served, told from its files alone: nothing heavy is imported.

A complete folder has config.json of a supported family, tokenizer.json and safetensors weights.
"""

import json
from pathlib import Path
from typing import Any

RANDOM_MARK = "random_weights.json"  # in the place of weights: they are drawn when loaded
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "opt", "gpt2")


class ModelUnusable(Exception):
    """No model can be served from what was named. The message is one sentence with what to do."""


def is_complete(folder: Path) -> bool:
    """True when a shard and a router can load the folder as it stands. Says nothing about the family."""
    return (
        (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file() and has_weights(folder)
    )


def has_weights(folder: Path) -> bool:
    """True when the folder holds safetensors, and all of them if an index names them."""
    if (folder / RANDOM_MARK).is_file():
        return True
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / name).is_file() for name in files)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises `ModelUnusable` when it is missing or not a JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelUnusable(
            f"{folder} has no config.json: name a folder that holds a model in Hugging Face layout "
            "(config.json, tokenizer.json, *.safetensors) or a .gguf file."
        ) from None
    except ValueError as error:
        raise ModelUnusable(f"{path} is not valid JSON ({error}): fetch the model again.") from None
    if not isinstance(config, dict):
        raise ModelUnusable(f"{path} is not a JSON object: fetch the model again.")
    return config


def check_family(family: str, name: str) -> None:
    """Raises `ModelUnusable` unless a decoder for this `model_type` (or GGUF architecture) exists here."""
    if family not in FAMILIES:
        raise ModelUnusable(
            f"{name} is of architecture {family or 'unknown'!r}, which is not supported: "
            f"choose a model of {', '.join(FAMILIES[:-1])} or {FAMILIES[-1]} (SmolLM models are llama)."
        )
