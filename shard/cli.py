"""Flags that the shard's commands share: which model, on what, kept where."""

import argparse
import os
from pathlib import Path

DTYPES = ["auto", "float32", "float16", "bfloat16"]


def add_device_flags(parser: argparse.ArgumentParser, dtypes: list[str] = DTYPES) -> None:
    """--device, --dtype and --num-threads."""
    import torch  # seconds to import: not for a command that only fetches

    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    help = "of weights and KV; auto: what suits the device [%(default)s]"
    add("--dtype", default="auto", choices=dtypes, help=help)
    add("--num-threads", type=positive, help="CPU threads [all cores]")


def add_revision_flag(parser: argparse.ArgumentParser) -> None:
    """--revision."""
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")


def add_kv_cache_flag(parser: argparse.ArgumentParser, default: int = 1 << 30) -> None:
    """--kv-cache-bytes."""
    parser.add_argument("--kv-cache-bytes", type=positive, default=default, help="[%(default)s]")


def add_cache_flag(parser: argparse.ArgumentParser) -> None:
    """--cache-dir."""
    help = "where models, compiled kernels and measurements are kept [%(default)s]"
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir(), help=help)


def positive(text: str) -> int:
    """A whole number of 1 or more, as an argument's type."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def positives(text: str) -> list[int]:
    """Such numbers by commas."""
    return [positive(part) for part in text.split(",")]


def default_cache_dir() -> Path:
    """HELIOS_CACHE, else a folder in the user's home."""
    return Path(os.environ.get("HELIOS_CACHE") or "~/.cache/helios").expanduser()
