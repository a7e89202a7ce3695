"""`python -m tests.gpu.speed DEVICE SECONDS whole|small SHAPE...`: full depth, and modes beside it."""

import contextlib
import gc
import io
import json
import sys
import tempfile
import time
import traceback
from typing import Any

import msgspec
import torch

from shard.bench.engine import main as run_bench
from tests.gpu.findings import note
from tests.gpu.plan import MODES, Plan, Shape, plan_of

FULL_SHARE = 0.4  # of a shape's time, at most, for full depth alone
SHARES = (0.74, 0.12, 0.07)  # of tokens that leave at each exit; the rest goes to full depth


def measure(shape: Shape, plan: Plan, device: str, small: bool, ends_at: float) -> bool:
    """Run both benchmarks of a shape; True if all points were measured."""
    left_s = ends_at - time.monotonic()
    common = {
        "model-id": shape.model_id,
        "device": device,
        "batch-sizes": ",".join(map(str, plan.batch_sizes)),
        "steps": 3 if small else 32,
        "kv-cache-bytes": 1 << (27 if small else 35),
    } | ({"num-layers": 4, "num-threads": 1} if small else {})
    full = common | {"contexts": 16 if small else 256, "seconds": left_s * FULL_SHARE}
    done = _run(shape, "full", full)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        shares = dict(zip(map(str, shape.exits), SHARES, strict=True))
        file.write(json.dumps({"shares": shares, "source": "a typical distribution"}))
        file.flush()
        modes = (
            common
            | {
                "contexts": 16 if small else 64,
                "block-size": 64,  # finely shared out: every mode has a cache of its own
                "exit-modes": ",".join(MODES[1:]),
                "replay-exits": file.name,
                "kv-fill": "project",
                "seconds": max(1.0, ends_at - time.monotonic()),
            }
        )
        return _run(shape, "modes", modes, *(["--no-exit-fallback"] if small else [])) and done


def _run(shape: Shape, bench: str, flags: dict[str, Any], *more: str) -> bool:
    """Run one benchmark, noting points as they come; True if it measured all."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    noted: set[tuple[int, str]] = set()

    def heard(measured: Any) -> None:
        for point in msgspec.to_builtins(measured if isinstance(measured, list) else [measured]):
            mode = point.get("mode", "full")
            if (point["batch_size"], mode) not in noted:  # full depth is measured beside each group of modes
                noted.add((point["batch_size"], mode))
                note(
                    "point",
                    shape=shape.name,
                    bench=bench,
                    **({"mode": mode, "context": flags["contexts"]} | point),
                )

    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            status = run_bench([*(f"--{name}={value}" for name, value in flags.items()), *more], heard)
    except Exception as error:
        traceback.print_exc()
        note("failed", name=shape.name, why=f"{type(error).__name__}: {error}"[:300])
        return False
    lines = [line for line in out.getvalue().splitlines() if line.startswith("{")]
    result = json.loads(lines[-1]) if lines else {"cut": [], "failed": {}}
    for name in result["cut"]:
        note("cut", name=f"{shape.name}, {name}")
    for name, why in result["failed"].items():
        note("failed", name=f"{shape.name}, {name}", why=why)
    return status == 0 and not result["cut"]


def main(device: str, seconds: str, size: str, *names: str) -> int:
    """Measure all shapes, each with its part of the time."""
    small = size == "small"
    plan, started = plan_of(device, small), time.monotonic()
    shapes = [shape for shape in plan.shapes if shape.name in names]
    budget_s = float(seconds) * 0.9  # what was begun has to end
    done = [
        measure(shape, plan, device, small, started + budget_s * (i + 1) / len(shapes))
        for i, shape in enumerate(shapes)
    ]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
