"""Times of parts of a step are those of the device, however much later it works than it is asked."""

import pytest
import torch

from shard.stopwatch import Laps


class Device:
    """Work that it was given, and marks among it, are passed once somebody waits."""

    def __init__(self) -> None:
        self.ms = 0.0
        self.pending: list[float | Event] = []

    def wait(self) -> None:
        for item in self.pending:
            if isinstance(item, Event):
                item.at = self.ms
            else:
                self.ms += item
        self.pending = []


class Event:
    device: Device

    def __init__(self, enable_timing: bool):
        assert enable_timing
        self.at: float | None = None

    def record(self, stream: str) -> None:
        assert stream == "of cuda:1"
        self.device.pending.append(self)

    def synchronize(self) -> None:
        self.device.wait()

    def elapsed_time(self, later: "Event") -> float:
        assert self.at is not None and later.at is not None, "not passed yet"
        return later.at - self.at


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(Event, "device", Device(), raising=False)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"of {device}")
    return Event.device


def test_a_gpus_laps_are_told_when_it_has_come_by(device: Device) -> None:
    laps, times = Laps(torch.device("cuda:1")), list[tuple[str, float]]()
    whole = laps.start()
    device.pending.append(5.0)
    part = laps.start()
    device.pending.append(2.0)
    laps.stop(part, lambda ms: times.append(("part", ms)))
    device.pending.append(1.0)
    laps.stop(whole, lambda ms: times.append(("whole", ms)))
    assert times == []
    laps.settle()
    assert times == [("part", 2.0), ("whole", 8.0)]
    laps.settle()
    assert len(times) == 2


def test_a_cpus_laps_are_told_at_once() -> None:
    laps, times = Laps(torch.device("cpu")), list[float]()
    lap = laps.start()
    laps.stop(lap, times.append)
    laps.stop(lap, times.append)
    assert 0 <= times[0] <= times[1]
    laps.settle()
    assert len(times) == 2
