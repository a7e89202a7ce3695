"""Flags that the shard's commands share: model, device, cache, logging."""

import argparse
import faulthandler
import logging
import os
from pathlib import Path

from shard.quality.weight_format import AUTO, QUANTIZE

DTYPES = ["auto", "float32", "float16", "bfloat16"]
KV_CACHE_DTYPES = [*DTYPES, "int8"]
LOG_LEVELS = ["debug", "info", "warning", "error"]


def add_device_flags(parser: argparse.ArgumentParser, dtypes: list[str] = DTYPES) -> None:
    """--device, --dtype and --num-threads."""
    import torch  # takes seconds to import; fetching does not need it

    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    text = "of weights; auto: what suits the device [%(default)s]"
    add("--dtype", default="auto", choices=dtypes, help=text)
    add("--num-threads", type=positive, help="CPU threads [all cores]")


def add_quantize_flag(parser: argparse.ArgumentParser) -> None:
    """--quantize."""
    text = "of weights; auto: a GGUF file's own blocks on CPUs in lossless modes, else none [%(default)s]"
    parser.add_argument("--quantize", default=AUTO, choices=QUANTIZE, help=text)


def add_revision_flag(parser: argparse.ArgumentParser) -> None:
    """--revision."""
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")


def add_kv_cache_flags(parser: argparse.ArgumentParser, default: int = 1 << 30) -> None:
    """--kv-cache-bytes and --kv-cache-dtype."""
    text = "of keys and values; auto: as weights are stored [%(default)s]"
    parser.add_argument("--kv-cache-dtype", default=AUTO, choices=KV_CACHE_DTYPES, help=text)
    parser.add_argument("--kv-cache-bytes", type=positive, default=default, help="[%(default)s]")


def add_cache_flag(parser: argparse.ArgumentParser) -> None:
    """--cache-dir."""
    text = "where models, compiled kernels and measurements are kept [%(default)s]"
    parser.add_argument("--cache-dir", type=_folder, default=_cache(), help=text)


def add_log_level_flag(parser: argparse.ArgumentParser) -> None:
    """--log-level, for `set_up_logging`."""
    text = "least level that is logged; debug: tracebacks too [%(default)s]"
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="info", help=text)


def set_up_logging(level: str) -> None:
    """Log to standard error, for the whole process, without libraries' debug records."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(number, logging.INFO), format="%(levelname)s %(name)s: %(message)s")
    for name in ("shard", "helios"):
        logging.getLogger(name).setLevel(number)
    if level == "debug":
        faulthandler.enable()


def positive(text: str) -> int:
    """An argument type: an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def positives(text: str) -> list[int]:
    """An argument type: integers of at least 1, separated by commas."""
    return [positive(part) for part in text.split(",")]


def default_cache_dir() -> Path:
    """HELIOS_CACHE, else a folder in the user's home. Raises `RuntimeError` for a user without one."""
    return Path(_cache()).expanduser()


def _cache() -> str:
    return os.environ.get("HELIOS_CACHE") or "~/.cache/helios"


def _folder(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text} is in no home folder that is known: name another") from None
