"""The benchmark of drafts: both modes answer the same prompts."""

import json
from pathlib import Path

import pytest

from shard.bench.drafts import OWN_PROMPTS, Side, measure, read_prompts
from shard.messages import NewSequence
from tests.shard.driving import make_runner, prompts_of


def test_both_modes_make_the_same_tokens_of_every_turn(tiny_model) -> None:
    full = Side(make_runner(tiny_model("llama")), 2)
    drafting = Side(make_runner(tiny_model("llama"), exit_mode="speculative", drafters=["text"]), 2)
    groups = [
        [
            NewSequence(i, 0, ids, len(ids), 24, ignore_eos=True)
            for i, ids in enumerate(prompts_of(259, [9, 20]))
        ]
        for _ in range(3)
    ]
    point = measure(full, drafting, "chat", groups, 2)
    assert full.made == drafting.made == 48
    assert 0 < point.low <= point.speedup <= point.high
    assert point.tokens_per_step >= 1
    assert all(a <= d for d, a in zip(drafting.drafted["text"], drafting.accepted["text"], strict=True))


def test_prompts_are_ours_or_of_spec_bench(tmp_path: Path) -> None:
    assert set(read_prompts(OWN_PROMPTS)) == {"chat", "code", "quote"}
    file = tmp_path / "prompts.jsonl"
    lines = [{"category": "rag", "turns": ["one", "two"]}, {"category": "coding", "turns": ["three"]}]
    file.write_text("\n".join(map(json.dumps, [*lines, {"prompt": "four"}])))
    assert read_prompts(file) == {"quote": ["one"], "code": ["three"], "prompts": ["four"]}
    file.write_text("{}\nnothing")
    with pytest.raises(ValueError, match="line 2"):
        read_prompts(file)
