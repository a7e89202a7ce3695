"""Command lines of each peer and of the Helios beside it: same weights, slots and threads. Pure."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from loadgen.client.server_info import Unusable
from loadgen.peers.venvs import Venv
from loadgen.servers.helios import helios_server
from loadgen.servers.process import ServerCommand

SPARE_TOKENS = 64  # of a slot, for prompts whose length is an estimate
SCRIPT = Path(__file__).with_name("llama_cpp_server.py")


class Size(msgspec.Struct, frozen=True):
    """What every server must hold at once."""

    num_streams: int
    request_tokens: int  # prompt and answer of the longest request
    num_threads: int

    @property
    def slot_tokens(self) -> int:
        return self.request_tokens + SPARE_TOKENS


class Weights(msgspec.Struct, frozen=True):
    """The model's file or folder as given, and what each peer reads of it; None: there is none."""

    given: Path
    gguf: Path | None
    checkpoint: Path | None

    @classmethod
    def at(cls, given: Path) -> "Weights":
        """Look into a folder, or take a GGUF file. Raises `Unusable`."""
        given = given.expanduser()
        if not given.exists():
            raise Unusable(f"--model: {given} does not exist")
        if given.is_file():
            return cls(given, given, None)
        ggufs = sorted(given.glob("*.gguf"))
        return cls(given, ggufs[0] if len(ggufs) == 1 else None, given if _has_weights(given) else None)


class Launch(msgspec.Struct, frozen=True):
    """Two servers to compare, with what they serve."""

    weights: str
    peer: ServerCommand
    helios: ServerCommand


Launcher = Callable[[Venv, Weights, Size, Sequence[str]], Launch]


def llama_cpp(venv: Venv, weights: Weights, size: Size, helios_flags: Sequence[str]) -> Launch:
    """The same GGUF file: Helios computes with the file's own blocks. Raises `Unusable`."""
    if weights.gguf is None:
        raise Unusable(f"llama.cpp needs a GGUF file, and {weights.given} does not hold exactly one")
    numbers = (str(size.num_streams), str(size.slot_tokens), str(size.num_threads))

    def command(port: int) -> Sequence[str]:
        return (venv.python, "-I", str(SCRIPT), str(weights.gguf), str(port), *numbers)

    flags = (*_helios(weights.given, size), "--quantize", "auto", *helios_flags)
    return Launch(
        f"{weights.gguf.name}, blocks", ServerCommand("llama.cpp", command, "/health"), helios_server(flags)
    )


def vllm(venv: Venv, weights: Weights, size: Size, helios_flags: Sequence[str]) -> Launch:
    """The same checkpoint, both in bfloat16. Raises `Unusable`."""
    if weights.checkpoint is None:
        raise Unusable(f"vLLM needs a folder with config.json and safetensors, not {weights.given}")

    def command(port: int) -> Sequence[str]:
        address = ("--host", "127.0.0.1", "--port", str(port))
        longest = ("--max-model-len", str(size.slot_tokens), "--max-num-seqs", str(size.num_streams))
        model = ("--model", str(weights.checkpoint), "--dtype", "bfloat16")
        return (venv.python, "-m", "vllm.entrypoints.openai.api_server", *model, *address, *longest)

    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding fails where a container hides the cores' layout
        "OMP_NUM_THREADS": str(size.num_threads),
    }
    flags = (
        *_helios(weights.checkpoint, size),
        *("--dtype", "bfloat16", "--quantize", "none"),
        *helios_flags,
    )
    return Launch("bfloat16", ServerCommand("vLLM", command, "/health", environment), helios_server(flags))


def _helios(model: Path, size: Size) -> tuple[str, ...]:
    """Flags of Helios at full depth, beside any peer."""
    room = ("--max-batch-size", str(size.num_streams), "--num-threads", str(size.num_threads))
    return ("--model-id", str(model), "--exit-mode", "full", *room, "--log-level", "warning")


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").exists() and any(folder.glob("*.safetensors"))
