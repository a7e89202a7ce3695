"""Options of `helios bench peers`."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from loadgen.cli.flags import Flag
from loadgen.cli.units import BadQuantity, number

PEERS = "peers (each in a venv of its own; they are no dependencies of Helios)"
WHAT = "what is served"
LOAD = "load"
RESULTS = "results"

ABOUT = """\
Starts llama.cpp's server or vLLM's CPU build, and Helios, with the same weights, and puts the same load on
both in turns: greedy, equal prompts, equal lengths. Prints ratios with 95% intervals.

  helios bench peers --install llama-cpp                    makes its venv in the cache first
  helios bench peers --llama-cpp VENV/bin/python --streams 1,8 --rounds 5
  helios bench peers --vllm VENV/bin/python --model FOLDER

llama.cpp gets the folder's GGUF file, and Helios serves that file's own blocks. vLLM gets the checkpoint in
bfloat16, and so does Helios. Both stand ready during the whole comparison, but only one is asked at a time,
and one that uses CPU time while idle is stopped during the other's turns. A ratio is Helios' value over the
peer's."""


class PeerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one comparison."""

    llama_cpp: Annotated[str | None, Flag(PEERS, "Python of a venv that has xllamacpp", "PYTHON")] = None
    vllm: Annotated[str | None, Flag(PEERS, "Python of a venv that has vLLM's CPU build", "PYTHON")] = None
    install: Annotated[
        Literal["llama-cpp", "vllm", "all"] | None,
        Flag(PEERS, "make that peer's venv in the cache (vllm: several GB)"),
    ] = None
    cache_dir: Annotated[
        str, Flag(PEERS, "where such venvs and the servers' logs are kept (or set HELIOS_CACHE)", "DIR")
    ] = "~/.cache/helios"

    model: Annotated[
        str | None,
        Flag(WHAT, "a folder, or a GGUF file (the embedded model's folder, which has both)", "PATH"),
    ] = None
    helios_flags: Annotated[str, Flag(WHAT, "more flags of `helios serve`", "FLAGS")] = ""

    streams: Annotated[str, Flag(LOAD, "numbers of streams, each a load of its own", "N,N,...")] = "1,8,32,64"
    input_tokens: Annotated[int, Flag(LOAD, "tokens of each prompt", "N")] = 128
    output_tokens: Annotated[int, Flag(LOAD, "tokens of each answer", "N")] = 128
    ttft_tokens: Annotated[
        int, Flag(LOAD, "tokens of the prompts whose time to first token is measured; 0: none", "N")
    ] = 512
    rounds: Annotated[int, Flag(LOAD, "pairs of rounds, each with its own prompts", "N")] = 3
    seconds: Annotated[
        float, Flag(LOAD, "a round starts requests for so long, and waits until they end", "S")
    ] = 10.0
    num_threads: Annotated[int | None, Flag(LOAD, "compute threads of every server (all cores)", "N")] = None
    seed: Annotated[int, Flag(LOAD, "the same seed gives the same requests", "N")] = 0

    out: Annotated[str | None, Flag(RESULTS, "write peers.json there, with all rounds", "DIR")] = None
    quiet: Annotated[bool, Flag(RESULTS, "no live view and no table, only the JSON line")] = False

    @property
    def cache(self) -> Path:
        return Path(self.cache_dir).expanduser()

    @property
    def stream_counts(self) -> list[int]:
        """Raises `BadQuantity`."""
        counts = [number(part, "--streams") for part in self.streams.split(",")]
        if any(count != int(count) for count in counts):
            raise BadQuantity(f"--streams needs whole numbers, not {self.streams!r}")
        return [int(count) for count in counts]

    def check(self) -> None:
        """Raises `BadQuantity`, which names the flag."""
        least = {"input_tokens": 1, "output_tokens": 2, "ttft_tokens": 0, "rounds": 1, "num_threads": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise BadQuantity(f"--{name.replace('_', '-')} must be at least {bound}, not {value}")
        number(str(self.seconds), "--seconds")
        _ = self.stream_counts
