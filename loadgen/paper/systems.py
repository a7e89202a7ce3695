"""The three systems as flags of `helios serve`, with equal memory. Pure."""

from collections.abc import Sequence

import msgspec

from loadgen.paper.footprint import Footprint
from loadgen.paper.subject import Subject

FULL, EARLY, HELIOS = "full depth", "early exit", "HELIOS"
PROBE_KV_BYTES = 256 * 2**20


class System(msgspec.Struct, frozen=True):
    """One of the three systems."""

    name: str
    flags: tuple[str, ...]
    depth: int  # layers loaded; for HELIOS the fewest possible
    largest_batch: int  # requests of the greatest length that fit at this depth


class Budget(msgspec.Struct, frozen=True):
    """The memory of each system, and the length of requests."""

    memory_bytes: int
    request_tokens: int  # prompt and answer of the longest request
    footprint: Footprint


def probes(subject: Subject) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Flags of two servers that show the size of layers: at full depth, and with the fewest layers."""
    roomy = ("--kv-cache-bytes", str(PROBE_KV_BYTES), "--max-batch-size", "256")
    return (*_whole(subject), *roomy), (*_capped(subject, subject.depths[0]), *roomy)


def systems_of(subject: Subject, budget: Budget, depth: int | None, common: Sequence[str]) -> list[System]:
    """Static full depth, static early exit, HELIOS (fixed at `depth` if given). Raises `TooSmall`."""
    early = (*_model(subject), "--exit-mode", "synchronized", *subject.early_exit)
    whole = budget.footprint.num_layers
    return [
        _system(FULL, _whole(subject), (whole, whole), budget, common),
        _system(EARLY, early, (whole, whole), budget, common),
        _system(HELIOS, _capped(subject, depth), (depth, depth), budget, common)
        if depth is not None
        else _system(
            HELIOS, ("--repository", str(subject.repository)), (whole, subject.depths[0]), budget, common
        ),
    ]


def _system(
    name: str, flags: tuple[str, ...], depths: tuple[int, int], budget: Budget, common: Sequence[str]
) -> System:
    """A system. `depths`: the initial one, which decides the KV cache, and the lowest possible one."""
    first, fewest = depths
    footprint, memory = budget.footprint, budget.memory_bytes
    batch = footprint.largest_batch(fewest, memory, budget.request_tokens)
    limits = ("--kv-cache-bytes", str(footprint.kv_bytes(first, memory)), "--max-batch-size", str(batch))
    return System(name, (*flags, *limits, *common), fewest, batch)


def _model(subject: Subject) -> tuple[str, ...]:
    return ("--model-id", subject.model)


def _whole(subject: Subject) -> tuple[str, ...]:
    """Flags of full depth. They include the mode, since a model's name alone may mean a repository."""
    return (*_model(subject), "--exit-mode", "full")


def _capped(subject: Subject, depth: int) -> tuple[str, ...]:
    return (*_model(subject), "--exit-mode", "capped", "--num-layers", str(depth), *subject.early_exit)
