"""Where joules come from, and what of them is a step's."""

from pathlib import Path
from typing import Any

import pytest

from shard.energy import Meter, NoEnergy, Nvml, PowerModel, Rapl, counter_of
from shard.messages import ShardConfig, StepOutput

RANGE_UJ = 999_999


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeLibrary:
    """The part of NVML that is called."""

    def __init__(self, status: int = 0):
        self.energy_mj = 5_000
        self._status = status

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: object) -> int:  # noqa: N802
        return 0 if uuid == b"GPU-17" else 2

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, total: Any) -> int:  # noqa: N802
        total._obj.value = self.energy_mj  # noqa: SLF001
        return self._status


def domain(powercap: Path, name: str, kind: str, energy_uj: int) -> Path:
    folder = powercap / name
    folder.mkdir()
    (folder / "name").write_text(f"{kind}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


def output(num_sequences: int) -> StepOutput:
    return StepOutput(1, [], [], num_free_blocks=0, num_sequences=num_sequences)


def config(device: str = "cpu", **more: object) -> ShardConfig:
    return ShardConfig("model", device, **more)


def test_rapl_adds_packages_and_memory_and_survives_a_wrap(tmp_path: Path) -> None:
    package = domain(tmp_path, "intel-rapl:0", "package-0", 900_000)
    memory = domain(tmp_path, "intel-rapl:0:1", "dram", 0)
    core = domain(tmp_path, "intel-rapl:0:0", "core", 0)  # a part of the package
    again = domain(tmp_path, "intel-rapl-mmio:0", "package-0", 0)  # the package, by another way
    rapl = Rapl(tmp_path, share=0.5)
    before = rapl.joules()
    for file, energy_uj in ((package, 100_000), (memory, 50_000), (core, 70_000), (again, 200_000)):
        file.write_text(str(energy_uj))
    assert rapl.joules() - before == pytest.approx(0.5 * (0.2 + 0.05))


def test_without_counters_there_is_no_rapl(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no RAPL"):
        Rapl(tmp_path, 1.0)


def test_nvml_tells_a_gpus_total() -> None:
    library = FakeLibrary()
    gpu = Nvml(library, "GPU-17")
    assert gpu.joules() == 5.0
    library.energy_mj = 6_500
    assert gpu.joules() == 6.5
    with pytest.raises(OSError, match="NVML"):
        Nvml(library, "GPU-unknown")
    with pytest.raises(OSError, match="NVML"):
        Nvml(FakeLibrary(status=3), "GPU-17")


def test_measured_comes_before_stated_before_unknown(tmp_path: Path) -> None:
    def source(**more: object) -> str | None:
        counter = counter_of(config(**more), tmp_path)
        return counter.source if counter is not None else None

    assert source() is None
    assert source(watts=65.0) == "a stated power of 65 W"
    assert source(device="sim", watts=65.0) == "a stated power of 65 W"
    domain(tmp_path, "intel-rapl:0", "package-0", 0)
    assert source(watts=65.0) == "RAPL"
    assert source(device="sim") is None


@pytest.mark.parametrize("device", ["cpu", "sim"])
def test_who_needs_joules_is_refused_with_a_sentence_where_nothing_tells_them(
    device: str, tmp_path: Path
) -> None:
    with pytest.raises(NoEnergy, match=r"^Joules are needed, .* --watts\.$"):
        counter_of(config(device, needs_energy=True), tmp_path)
    assert counter_of(config(device, needs_energy=True, watts=10.0), tmp_path) is not None


def test_what_is_spent_without_work_is_no_steps() -> None:
    clock = Clock()
    meter = Meter(PowerModel(10.0, clock), clock)
    clock.now += 1000
    spent = []
    for num_sequences, step_s, pause_s in ((2, 1.0, 0.5), (2, 1.0, 0.5), (0, 1.0, 1000.0), (0, 2.0, 0.0)):
        meter.begin()
        clock.now += step_s
        spent.append(meter.end(output(num_sequences)).joules)
        clock.now += pause_s
    assert spent == [10.0, 15.0, 15.0, 20.0]


def test_counters_are_read_seldom_and_nothing_is_lost() -> None:
    clock = Clock()
    model = PowerModel(100.0, clock)
    meter = Meter(model, clock)
    spent = []
    for number in range(100):
        meter.begin()
        clock.now += 0.01
        spent.append(meter.end(output(num_sequences=number < 99)).joules)
    assert sum(joules or 0.0 for joules in spent) == pytest.approx(100.0)
    assert sum(bool(joules) for joules in spent) < 30


def test_without_a_counter_joules_are_not_known() -> None:
    meter = Meter(None)
    meter.begin()
    assert meter.end(output(1)).joules is None
    assert meter.source is None
