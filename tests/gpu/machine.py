"""`python -m tests.gpu.machine DEVICE MODEL`: describes the device, its energy and its swap times."""

import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch
import transformers

from shard.bench.engine import folder_of
from shard.bench.limit import copied_bytes_per_ms
from shard.bench.lockstep import Lockstep
from shard.cli import default_cache_dir
from shard.energy import Meter, counter_of
from shard.loader import ModelLoader
from shard.messages import Commit, Committed, Prepare, Prepared, ShardConfig
from shard.runner import ModelRunner
from shard.served_models import ServedModels
from tests.gpu.findings import note

ENERGY_S, BATCH_SIZE, CONTEXT = 4.0, 8, 64
WATTS = range(20, 2000)  # of one GPU at work
DEPTHS = (0.5, 1.0, 0.75)  # shares of the layers, one change after the other


def describe(device: str) -> None:
    """Report names, versions and memory bandwidth."""
    at = torch.device(device)
    on_gpu = at.type == "cuda"
    properties = torch.cuda.get_device_properties(at) if on_gpu else None
    note(
        "device",
        device=device,
        name=properties.name if properties is not None else platform.processor() or platform.machine(),
        memory_bytes=properties.total_memory if properties is not None else None,
        capability=".".join(map(str, torch.cuda.get_device_capability(at))) if on_gpu else None,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        transformers=transformers.__version__,
        python=platform.python_version(),
        gigabytes_per_s=round(copied_bytes_per_ms(at) / 1e6, 1),
    )


def spend(config: ShardConfig, seconds: float) -> None:
    """Report joules of decoding. On a GPU they must come from NVML and be plausible."""
    meter, tokens, joules = Meter(counter_of(config)), 0, 0.0
    lockstep = Lockstep(ModelRunner(config), BATCH_SIZE, CONTEXT)
    lockstep.prefill()
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        meter.begin()
        output = meter.end(lockstep.step())
        joules += output.joules or 0.0
        tokens += sum(len(part.tokens) for part in output.outputs)
    elapsed = time.perf_counter() - started
    watts = joules / elapsed
    note(
        "energy", source=meter.source, watts=round(watts, 1), joules_per_token=joules / tokens, tokens=tokens
    )
    if config.device.startswith("cuda") and (meter.source != "NVML" or int(watts) not in WATTS):
        raise AssertionError(f"{watts:.0f} W by {meter.source} are not what NVML says of a GPU at work")


def change(config: ShardConfig, num_layers: int) -> None:
    """Report the time to prepare other depths, and the gap in steps of each change."""
    shard = ServedModels(config, ModelLoader())
    for epoch, share in enumerate(DEPTHS, 1):
        depth = int(num_layers * share)
        started = time.perf_counter()
        prepared = shard.prepare(Prepare(epoch, msgspec.structs.replace(config, num_layers=depth)))
        prepare_ms = (time.perf_counter() - started) * 1000
        committed = shard.commit(Commit(epoch))
        if not (isinstance(prepared, Prepared) and isinstance(committed, Committed)):
            raise AssertionError(f"a change to {depth} layers failed: {prepared}, {committed}")
        note("swap", depth=depth, prepare_ms=round(prepare_ms, 1), gap_ms=round(committed.gap_ms, 1))


def main(device: str, model_id: str) -> int:
    """Run all in turn; failures are named."""
    folder = folder_of(model_id, default_cache_dir())
    on_gpu = device.startswith("cuda")
    more: dict[str, Any] = {} if on_gpu else {"num_layers": 4, "num_threads": 1}
    config = ShardConfig(
        str(folder), device=device, dtype="auto", kv_cache_bytes=1 << (31 if on_gpu else 27), **more
    )
    steps: list[Callable[[], None]] = [
        lambda: describe(device),
        lambda: spend(config, ENERGY_S if on_gpu else 0.5),
        lambda: change(config, 30 if on_gpu else 4),
    ]
    status = 0
    for step in steps:
        try:
            step()
        except Exception as error:
            note("failed", name="energy and swap times", why=f"{type(error).__name__}: {error}"[:300])
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
