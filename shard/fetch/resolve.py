"""Resolves a model's name to a complete local folder: `python -m shard.fetch.resolve MODEL --cache DIR`.

The router runs it as a separate process, since some conversions need torch, which the router must not import.
For a complete folder it only looks at files, in milliseconds.
"""

import argparse
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shard import failure
from shard.cli import add_log_level_flag, set_up_logging
from shard.fetch.atomic_folder import clear_up, make_once
from shard.fetch.convert import CONVERSION
from shard.fetch.killable import run_killable
from shard.fetch.pull import pull
from shard.messages import EMBEDDED_MODEL
from shard.models.model_folder import (
    SINGLE_FILE,
    ModelUnusable,
    check_config,
    has_weights,
    is_complete,
    read_config,
    weight_files,
)

log = logging.getLogger("shard.fetch")


def resolve(model_id: str, revision: str | None, cache: Path) -> Path:
    """A complete folder for the embedded model's name, random:SHAPE, a folder, a .gguf file or a hub id.

    Missing files (tokenizer.json, safetensors) are made in the cache, never in the user's folder.
    Raises `ModelUnusable`.
    """
    if model_id in (EMBEDDED_MODEL, "embedded"):
        return pull(cache)
    if model_id.startswith("random:"):
        return _random(model_id, cache)
    local = Path(model_id).expanduser()
    if local.is_file():
        return _from_gguf(local, cache)
    if local.is_dir():
        return _from_folder(local, cache)
    if _looks_like_a_path(model_id):
        raise ModelUnusable(f"There is no model at {model_id}: name a folder, a .gguf file or a hub id.")
    return _from_hub(model_id, revision, cache)


def _random(model_id: str, cache: Path) -> Path:
    """A folder of a published shape, with weights drawn when loaded, and the embedded model's tokenizer."""

    def make(folder: Path) -> None:
        from shard.models.random_weights import write_random_model

        write_random_model(model_id, folder)
        shutil.copy(pull(cache) / "tokenizer_config.json", folder)
        tokenizer = json.loads((pull(cache) / "tokenizer.json").read_text(encoding="utf-8"))
        shrink_tokenizer(tokenizer, int(read_config(folder)["vocab_size"]))
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")

    return make_once(cache / "models" / model_id.replace(":", "-"), is_complete, make)


def shrink_tokenizer(tokenizer: dict[str, Any], vocab_size: int) -> None:
    """Remove the tokens beyond a smaller vocabulary: the latest merges in BPE's order."""
    model = tokenizer["model"]
    model["vocab"] = {token: id for token, id in model["vocab"].items() if id < vocab_size}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]


def _looks_like_a_path(model_id: str) -> bool:
    return model_id.startswith(("/", ".", "~")) or model_id.endswith(".gguf") or model_id.count("/") > 1


def _from_hub(model_id: str, revision: str | None, cache: Path) -> Path:
    from shard.fetch.hub import fetch  # huggingface_hub takes a third of a second to import

    return _from_folder(fetch(model_id, revision), cache)


def _from_gguf(file: Path, cache: Path) -> Path:
    if file.suffix != ".gguf":
        raise ModelUnusable(f"{file} is not a .gguf file: name a model's folder, a .gguf file or a hub id.")

    def make(folder: Path) -> None:
        from shard.fetch.convert import convert_gguf

        _say(f"Converting {file.name} (once)")
        convert_gguf(file.resolve(), folder)

    return make_once(_place(file, [file], cache), is_complete, make)


def _from_folder(source: Path, cache: Path) -> Path:
    packed = sorted(source.glob("*.gguf"))
    if packed and not has_weights(source):
        return _from_gguf(_only(packed, source), cache)
    check_config(read_config(source), str(source))
    if is_complete(source):
        return source
    return make_once(
        _place(source, list(source.iterdir()), cache), is_complete, lambda to: _complete(source, to)
    )


def _only(packed: list[Path], source: Path) -> Path:
    if len(packed) > 1:
        names = ", ".join(path.name for path in packed)
        raise ModelUnusable(f"{source} holds several .gguf files: name one of {names}.")
    return packed[0]


def _complete(source: Path, folder: Path) -> None:
    """Fill a folder with links to the source's files, and with converted ones that it lacks."""
    from shard.fetch.convert import convert_weights, make_tokenizer

    if not has_weights(source):
        if not any(source.glob("pytorch_model*.bin")):
            missing = [file.name for file in weight_files(source) if not file.is_file()]
            raise ModelUnusable(
                f"{source} lacks weights ({missing[0] if missing else SINGLE_FILE} is missing): "
                "fetch the model again."
            )
        _say(f"Converting the weights of {source.name} to safetensors (once)")
        convert_weights(source.resolve(), folder)
    if not (source / "tokenizer.json").is_file():
        _say(f"Making tokenizer.json for {source.name} (once)")
        make_tokenizer(source.resolve(), folder)
    for path in source.iterdir():
        if path.suffix != ".bin" and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve())


def _place(source: Path, files: list[Path], cache: Path) -> Path:
    """The cache folder for conversions of these files. Other files, or changed ones, get another one."""
    facts = sorted((str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    return cache / f"prepared-{CONVERSION}" / f"{source.stem}-{key}"


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 with the folder on stdout, else 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m shard.fetch.resolve", description="Find or fetch a model."
    )
    parser.add_argument("model_id")
    parser.add_argument("--revision")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--end-with-stdin", action="store_true", help="end when whoever asked is gone")
    add_log_level_flag(parser)
    options = parser.parse_args(arguments)
    set_up_logging(options.log_level)
    return run_killable(
        lambda: _answer(options), lambda: clear_up(options.cache), ends_with_stdin=options.end_with_stdin
    )


def _answer(options: argparse.Namespace) -> int:
    try:
        print(resolve(options.model_id, options.revision, options.cache))
    except ModelUnusable as error:
        print(f"helios: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        log.debug("The model was not prepared.", exc_info=True)
        doing = f"Preparing {options.model_id} in {options.cache} (--cache-dir)"
        print(f"helios: {failure.sentence(error, doing)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
