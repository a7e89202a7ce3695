"""The three systems as flags of `helios serve`, each with its share of the same memory. Pure."""

from collections.abc import Sequence

import msgspec

from loadgen.paper.footprint import Footprint
from loadgen.paper.subject import Subject

FULL, EARLY, HELIOS = "full depth", "early exit", "HELIOS"
PROBE_KV_BYTES = 256 * 2**20


class System(msgspec.Struct, frozen=True):
    """One of the three."""

    name: str
    flags: tuple[str, ...]
    depth: int  # layers loaded, of HELIOS the fewest that it may load
    largest_batch: int  # requests of the greatest length that fit beside that many layers


class Budget(msgspec.Struct, frozen=True):
    """What every system gets, and what requests take of it."""

    memory_bytes: int
    request_tokens: int  # of the longest, prompt and answer
    footprint: Footprint


def probes(subject: Subject) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Flags of two servers that are asked what layers weigh: the whole model, and the fewest layers."""
    roomy = ("--kv-cache-bytes", str(PROBE_KV_BYTES), "--max-batch-size", "256")
    return (*_whole(subject), *roomy), (*_capped(subject, subject.depths[0]), *roomy)


def systems_of(subject: Subject, budget: Budget, depth: int | None, common: Sequence[str]) -> list[System]:
    """Static full depth, static early exit, HELIOS; with a `depth` it keeps to that. Raises `TooSmall`."""
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
    """`depths`: what it starts with, which decides its KV cache, and the fewest it may come to."""
    first, fewest = depths
    footprint, memory = budget.footprint, budget.memory_bytes
    batch = footprint.largest_batch(fewest, memory, budget.request_tokens)
    limits = ("--kv-cache-bytes", str(footprint.kv_bytes(first, memory)), "--max-batch-size", str(batch))
    return System(name, (*flags, *limits, *common), fewest, batch)


def _model(subject: Subject) -> tuple[str, ...]:
    return ("--model-id", subject.model)


def _whole(subject: Subject) -> tuple[str, ...]:
    """Full depth and nothing else: the mode is said, since the model's name alone may mean a repository."""
    return (*_model(subject), "--exit-mode", "full")


def _capped(subject: Subject, depth: int) -> tuple[str, ...]:
    return (*_model(subject), "--exit-mode", "capped", "--num-layers", str(depth), *subject.early_exit)
