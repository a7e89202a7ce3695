"""What parts of a step cost is measured within what the model was loaded for."""

from pathlib import Path

import pytest

from shard.exits.segments import Row
from shard.tune.costs import CONTEXT, measure_costs
from tests.shard.driving import make_runner
from tests.shard.exit_files import write_exits


@pytest.mark.parametrize("max_total_tokens", [24, 200])
def test_no_position_is_beyond_the_loaded_ones(
    tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_total_tokens: int
) -> None:
    """Rotary tables reach as far as requests may: what lies behind them is other memory."""
    model = tiny_model("llama")
    exits = write_exits(tmp_path / "exits", model, [1, 3], "mlp")
    runner = make_runner(model, exits=str(exits), exit_mode="per_row", max_total_tokens=max_total_tokens)
    started: list[Row] = []
    real = runner.stack.start
    monkeypatch.setattr(runner.stack, "start", lambda rows: started.extend(rows) or real(rows))
    measure_costs(runner)
    (row,) = started
    assert row.chunk.end == min(CONTEXT, max_total_tokens)
