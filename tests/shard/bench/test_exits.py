"""The benchmark of modes runs them all beside full depth, and sets bounds beside what it measures."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from shard.bench.agenda import Agenda
from shard.bench.exits import ModeBench, run_modes, table_of
from shard.exits.replay import read_replay
from shard.messages import Mode, ShardConfig
from tests.shard.driving import SETTINGS


@pytest.fixture
def asked(tiny_model, tmp_path: Path):
    """`asked(agenda, **options)` is what `run_modes` is given."""
    file = tmp_path / "shares.json"
    file.write_text('{"shares": {"1": 0.6, "2": 0.2}}')

    def make(**changes: object) -> ShardConfig:
        fields = SETTINGS | {"model": str(tiny_model("llama"))} | changes
        return ShardConfig(**fields)

    def ask(agenda: Agenda, **options: object) -> tuple[Any, ...]:
        given = {
            "exit_modes": [Mode.PER_ROW, Mode.SYNCHRONIZED, Mode.CAPPED],
            "batch_sizes": [1, 4],
            "contexts": [16],
            "steps": 8,
            "kv_fill": "recompute",
            "replay_exits": file,
            "no_exit_fallback": True,
        } | options
        return argparse.Namespace(**given), make, read_replay(file), agenda

    return ask


@pytest.mark.parametrize("fill", ["project", "recompute"])
def test_every_mode_is_measured_against_full_depth(asked, fill: str):
    agenda = Agenda()
    points = run_modes(*asked(agenda, kv_fill=fill))
    assert not agenda.cut and not agenda.failed
    assert [(p.batch_size, p.mode) for p in points] == [
        (size, mode) for size in (1, 4) for mode in ("full", "per_row", "synchronized", "capped")
    ]
    for point in points:
        assert point.tokens_per_s > 0 and point.of_limit >= 0
        assert point.mode == "full" or (point.bound is not None and point.bound >= 1)
    assert {p.mode: p.mean_exit_layer for p in points if p.mode in ("full", "capped")} == {
        "full": 4,
        "capped": 1,
    }
    assert all(1 < p.mean_exit_layer < 4 for p in points if p.mode in ("per_row", "synchronized"))
    assert table_of(points).row_count == len(points)


def test_modes_take_turns_with_full_depth_as_far_as_memory_goes(asked, monkeypatch: pytest.MonkeyPatch):
    """Each is measured once, full depth beside all of them and told once."""
    bench = ModeBench(*asked(Agenda())[:-1])
    monkeypatch.setattr("shard.bench.exits.is_elastic", lambda device: False)
    others = [Mode.PER_ROW, Mode.SYNCHRONIZED, Mode.CAPPED]
    for num_caches, groups in ((1, [1, 1, 1]), (2, [1, 1, 1]), (3, [2, 1]), (9, [3])):
        free = num_caches * bench.kv_bytes(4)
        monkeypatch.setattr("shard.bench.exits.free_bytes", lambda device, free=free: free)
        assert [len(group) for group in bench.groups(others, 4)] == groups
    monkeypatch.setattr("shard.bench.exits.free_bytes", lambda device: 0)
    points = run_modes(*asked(Agenda(), batch_sizes=[2]))
    assert [point.mode for point in points] == ["full", "per_row", "synchronized", "capped"]


def test_what_does_not_fit_or_is_late_costs_nothing_else(asked, monkeypatch: pytest.MonkeyPatch):
    real = ModeBench.measure

    def measure(self: ModeBench, modes: list[Mode], batch_size: int):
        if batch_size == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has 1 GiB")
        return real(self, modes, batch_size)

    monkeypatch.setattr(ModeBench, "measure", measure)
    agenda = Agenda()
    points = run_modes(*asked(agenda, exit_modes=[Mode.CAPPED]))
    assert [(point.batch_size, point.mode) for point in points] == [(4, "full"), (4, "capped")]
    assert list(agenda.failed) == ["batch 1, capped"] and "9.00 GiB" in agenda.failed["batch 1, capped"]
    late = Agenda(seconds=0)
    assert run_modes(*asked(late, exit_modes=[Mode.CAPPED])) == []
    assert late.cut == ["batch 1, capped", "batch 4, capped"] and not late.failed
