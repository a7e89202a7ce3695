"""The plan of `make gpu`: parts, order and budgets. Imports the standard library alone."""

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 530  # for all parts together: under nine minutes
MODES = ("full", "per_row", "synchronized", "capped", "speculative")
EQUALITY = (
    "tests/shard/ops/test_cuda_ops.py",
    "tests/shard/test_half_precision.py",
    "tests/shard/test_runner.py",
    "tests/shard/exits",
    "tests/shard/test_offline.py",
    "tests/shard/models",
    "tests/shard/bench",
)
SWAPS = ("tests/shard/test_loader.py",)
NEEDED = (  # packages that the parts import
    *("torch", "transformers", "safetensors", "tokenizers", "numpy", "msgspec", "rich", "psutil"),
    *("llguidance", "pytest", "pytest_asyncio", "pytest_timeout", "xdist", "hypothesis"),
)


class Shape(NamedTuple):
    """A model to be measured, with random weights."""

    name: str
    model_id: str
    exits: tuple[int, int, int]  # layers, for the modes of early exit


class Part(NamedTuple):
    """One process, with the time that it may take."""

    name: str
    budget_s: int
    arguments: tuple[str, ...]  # for the Python that has all packages


class Plan(NamedTuple):
    """Everything, for one device."""

    parts: tuple[Part, ...]
    shapes: tuple[Shape, ...]
    batch_sizes: tuple[int, ...]


SHAPES = (
    Shape("SmolLM2-135M", "random:smollm2-135m", (7, 15, 22)),
    Shape("llama3-8b", "random:llama3-8b", (8, 16, 24)),
    Shape("opt-1.3b", "random:opt-1.3b", (6, 12, 18)),
)
SMALL_SHAPES = (  # narrowed to four layers
    Shape("SmolLM2-135M", "random:smollm2-135m:3", (1, 2, 3)),
    Shape("llama3-8b", "random:llama3-8b:8", (1, 2, 3)),
    Shape("opt-1.3b", "random:opt-1.3b:16", (1, 2, 3)),
)


def plan_of(device: str, small: bool) -> Plan:
    """The full plan; with `small` the same on tiny models, for a test of the script itself."""
    if small:
        shapes, batch_sizes = SMALL_SHAPES, (1, 2)
        parts: tuple[Part, ...] = (
            _tests("equality", 100, device, EQUALITY[:1], ("-k", "attention_equals_plain", "-p", "no:xdist")),
            _tests("swaps", 100, device, SWAPS, ("-k", "tight", "-p", "no:xdist")),
            Part("energy and swap times", 100, ("-m", "tests.gpu.machine", device, SMALL_SHAPES[0].model_id)),
            Part("speed", 200, ("-m", "tests.gpu.speed", device, "200", "small", *(s.name for s in shapes))),
        )
        return Plan(parts, shapes, batch_sizes)
    # The embedded model would have to be fetched.
    workers = ("-n", "14", "--dist", "load", "-k", "not smollm2")
    budgets = {"SmolLM2-135M": 75, "llama3-8b": 130, "opt-1.3b": 75}
    parts = (
        _tests("equality", 140, device, EQUALITY, workers),
        _tests("swaps", 45, device, SWAPS, workers),
        Part("energy and swap times", 40, ("-m", "tests.gpu.machine", device, SHAPES[0].model_id)),
        *(
            Part(f"speed, {name}", budget_s, ("-m", "tests.gpu.speed", device, str(budget_s), "whole", name))
            for name, budget_s in budgets.items()
        ),
    )
    return Plan(parts, SHAPES, (1, 8, 64, 256))


def _tests(name: str, budget_s: int, device: str, files: tuple[str, ...], more: tuple[str, ...]) -> Part:
    """Tests on a device. Warnings are not errors there, since torch may differ."""
    plugins = ("-p", "tests.gpu.findings", "-p", "no:cacheprovider")
    settings = ("-o", "filterwarnings=default", "-o", f"suite_timeout={budget_s - 10}", "--durations=3")
    arguments = ("-m", "pytest", "-q", *plugins, *settings, "--device", device, *more, *files)
    return Part(name, budget_s, arguments)
