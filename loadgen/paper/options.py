"""Options of `helios bench helios`, and its two sizes."""

from typing import Annotated, Literal

import msgspec

from loadgen.cli.flags import Flag

WHAT = "what is measured"
SIZE = "size"
RESULTS = "results"

ABOUT = """\
The experiment of the HELIOS paper: a static full model, a static early-exit model, and HELIOS, which loads
the layers it needs and reassesses. Each gets the same memory. Starts and stops the servers itself.

  helios bench helios --quick                   minutes: narrow shapes, few requests
  helios bench helios --dataset spec_bench.jsonl --floor 0.9
  helios bench helios --parts replay --full-shapes --memory 12GiB      the paper's shapes, on a GPU

Two parts: `weights` has the embedded model answer real prompts whose classes shift; `replay` draws exits from
a published distribution on random weights of published shapes: honest speed, no model's answers."""


class HeliosOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one experiment. None: by the size."""

    parts: Annotated[Literal["all", "weights", "replay"], Flag(WHAT, "which part of the experiment")] = "all"
    memory: Annotated[
        str | None,
        Flag(
            WHAT,
            "weights and KV cache of each system together, such as 2GiB (what the static ones need "
            "for --batch requests)",
            "BYTES",
        ),
    ] = None
    depth: Annotated[
        int | None,
        Flag(WHAT, "no reassessment: HELIOS keeps to this many layers", "N"),
    ] = None
    floor: Annotated[
        float,
        Flag(WHAT, "agreement with full depth that HELIOS must keep; real weights only", "SHARE"),
    ] = 0.9
    dataset: Annotated[
        str | None,
        Flag(WHAT, "real prompts of a file by class (Spec-Bench), one class after another", "FILE"),
    ] = None
    model_id: Annotated[str, Flag(WHAT, "model with real weights", "ID")] = "smollm2-135m-instruct"
    exits: Annotated[
        tuple[str, ...],
        Flag(WHAT, "folder of its exits; more than one: the variants to choose among", "DIR"),
    ] = ()
    watts: Annotated[float | None, Flag(WHAT, "power of a busy device, where it cannot be measured", "W")] = (
        None
    )
    device: Annotated[Literal["auto", "cpu", "cuda", "sim"], Flag(WHAT, "where the servers compute")] = "auto"

    quick: Annotated[bool, Flag(SIZE, "a few minutes instead of half an hour")] = False
    full_shapes: Annotated[
        bool, Flag(SIZE, "replay: OPT-1.3B and OPT-6.7B as wide as they are, for a GPU")
    ] = False
    batch: Annotated[int | None, Flag(SIZE, "requests that the static systems have memory for", "N")] = None
    requests: Annotated[int | None, Flag(SIZE, "requests of each run (the paper: 1087 in all)", "N")] = None
    rounds: Annotated[int | None, Flag(SIZE, "every system once in each", "N")] = None
    seed: Annotated[int, Flag(SIZE, "the same seed gives the same requests", "N")] = 0

    out: Annotated[str, Flag(RESULTS, "write helios.json and helios.png there", "DIR")] = "helios-bench"
    quiet: Annotated[bool, Flag(RESULTS, "no live view and no table, only the JSON line")] = False


class Size(msgspec.Struct, frozen=True):
    """The size of the experiment."""

    narrowing: int  # factor by which replayed shapes are narrower
    batch: int
    requests: int
    rounds: int
    output_tokens: tuple[int, int]  # range
    reassess_every: int  # requests
    breach_window: int  # tokens


FULL = Size(4, 16, 200, 4, (48, 112), 150, 100)
QUICK = Size(8, 8, 100, 2, (16, 48), 25, 100)


def size_of(options: HeliosOptions) -> Size:
    """The chosen size, as changed by flags."""
    size = QUICK if options.quick else FULL
    said = {name: getattr(options, name) for name in ("batch", "requests", "rounds")}
    changes = {name: value for name, value in said.items() if value is not None}
    if options.full_shapes:
        changes["narrowing"] = 1
    return msgspec.structs.replace(size, **changes)
