"""The benchmark of the prefix cache's cost: both engines answer the same prompts, and none repeats."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shard.bench.engine import main
from shard.bench.prefix import measure
from tests.shard.driving import make_runner


def test_nothing_is_found_and_both_do_the_same(tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model("llama")
    cached, without = make_runner(folder, prefix_cache=True), make_runner(folder)
    found = measure(cached, without, batch_size=2, num_rounds=2)
    assert found.batch_size == 2
    assert min(found.tokens_per_s, found.tokens_per_s_without, found.table_us_per_block) > 0
    assert cached.table.pool.num_known > 0
    assert without.table.pool.num_known == 0


def test_the_command_ends_in_a_line_of_json(
    tiny_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model-id", str(tiny_model("llama")), "--prefix-cache", "--batch-sizes", "1,2"]
    assert main([*flags, "--kv-cache-bytes", str(1 << 24), "--num-threads", "1", "--steps", "1"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [point["batch_size"] for point in line["points"]] == [1, 2]
