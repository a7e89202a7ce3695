"""The benchmark of modes runs them all beside full depth, and sets bounds beside what it measures."""

import argparse
from pathlib import Path

import pytest

from shard.bench.exits import run_modes, table_of
from shard.exits.replay import read_replay
from shard.exits.settings import Mode
from shard.messages import ShardConfig
from tests.shard.driving import SETTINGS


@pytest.mark.parametrize("fill", ["project", "recompute"])
def test_every_mode_is_measured_against_full_depth(tiny_model, tmp_path: Path, fill: str):
    file = tmp_path / "shares.json"
    file.write_text('{"shares": {"1": 0.6, "2": 0.2}}')
    options = argparse.Namespace(
        exit_modes=[Mode.PER_ROW, Mode.SYNCHRONIZED, Mode.CAPPED],
        batch_sizes=[1, 4],
        contexts=[16],
        steps=8,
        kv_fill=fill,
        replay_exits=file,
        no_exit_fallback=True,
    )

    def make(**changes: object) -> ShardConfig:
        fields = SETTINGS | {"model": str(tiny_model("llama"))} | changes
        return ShardConfig(**fields)  # type: ignore[arg-type]

    points = run_modes(options, make, read_replay(file))
    assert [(p.batch_size, p.mode) for p in points] == [
        (size, mode) for size in (1, 4) for mode in ("full", "per_row", "synchronized", "capped")
    ]
    for point in points:
        assert point.tokens_per_s > 0
        assert point.mode == "full" or (point.bound is not None and point.bound >= 1)
    assert {p.mode: p.mean_exit_layer for p in points if p.mode in ("full", "capped")} == {
        "full": 4,
        "capped": 1,
    }
    assert all(1 < p.mean_exit_layer < 4 for p in points if p.mode in ("per_row", "synchronized"))
    assert table_of(points).row_count == len(points)
