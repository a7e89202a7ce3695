"""The simulation of prefix caches: a trace of chats finds what is there to find."""

import json
import random
from pathlib import Path

import pytest

from router.simulation.cache_bench import Asked, main, measure
from router.simulation.cache_trace import num_found_ideally, read_prompts


def write_trace(path: Path, num_chats: int = 12, num_turns: int = 6) -> Path:
    """Turns of chats, in random order; each begins with all of the turn before."""
    draw = random.Random(5)
    turns = sorted(
        (draw.random() + turn, chat, turn) for chat in range(num_chats) for turn in range(num_turns)
    )
    rows = [
        {
            "timestamp": number,
            "input_length": 512 * 2 * (turn + 1) - 7,
            "output_length": 100,
            "hash_ids": [100 * chat + block for block in range(2 * (turn + 1))],
        }
        for number, (_, chat, turn) in enumerate(turns)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_share_what_the_trace_says(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace.jsonl", num_chats=1, num_turns=3)
    first, second, third = (prompt.token_ids for prompt in read_prompts(trace, 32, 256, 512))
    assert (len(first), len(second), len(third)) == (31, 63, 95)
    assert third[:63] == second
    assert second[:31] == first
    assert num_found_ideally(read_prompts(trace, 32, 256, 512), 100, 16) == 16 + 48
    assert num_found_ideally(read_prompts(trace, 32, 256, 512), 1, 16) == 16 + 16


def test_many_shards_find_nearly_what_one_cache_would(tmp_path: Path) -> None:
    """And more than in the requests' own order, without a shard that gets most."""
    trace = write_trace(tmp_path / "trace.jsonl", num_chats=24)
    result = measure(Asked(str(trace), shards=3, blocks=300, concurrency=24, batch=2))
    assert 1.1 * result.in_order.found_tokens < result.by_cache.found_tokens
    assert result.over_ideal < 0.35
    assert result.by_cache.hottest_share < 0.5


def test_a_file_that_is_no_trace_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trace").write_text('{"input_length": 1}\n')
    assert main(["--trace", str(tmp_path / "trace")]) == 1
    assert "line 1" in capsys.readouterr().err
    assert main(["--trace", str(tmp_path / "none")]) == 1


def test_costs_are_measured_without_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    costs = json.loads(capsys.readouterr().out.splitlines()[-1])["costs"]
    assert costs["index_bytes_per_block"] < 100
    assert all(value > 0 for value in costs.values())
