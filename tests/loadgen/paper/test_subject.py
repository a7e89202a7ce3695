"""What is served is written down as servers read it: their own readers take these files."""

import json
from pathlib import Path

import msgspec
import pytest

from loadgen.cli.units import BadQuantity
from loadgen.paper.footprint import Footprint
from loadgen.paper.options import FULL, QUICK, HeliosOptions, size_of
from loadgen.paper.subject import EMBEDDED_REPOSITORY, real_weights, replayed_exits
from loadgen.paper.systems import Budget, systems_of
from router.__main__ import read_config
from router.catalog.candidate_config import repository_of
from router.catalog.repository import read_repository
from shard.exits.exit_heads import read_exits
from shard.exits.replay import Replay, read_replay


def test_replayed_exits_stand_after_each_quarter_and_long_prompts_go_deeper(tmp_path: Path):
    subject = replayed_exits(QUICK, tmp_path)
    assert (subject.model, subject.num_layers, subject.depths) == ("random:opt-1.3b:8", 24, (6, 12, 18))
    small, large = read_repository(subject.repository).candidates
    assert (small.depths, large.depths) == ((6, 12, 18), (8, 16, 24))
    assert (small.model, large.model) == ("random:opt-1.3b:8", "random:opt-6.7b:8")
    for candidate in (small, large):
        assert candidate.exits is not None
        assert candidate.replay_exits is not None
        assert tuple(spec.layer for spec in read_exits(Path(candidate.exits)).exits) == candidate.depths
        file = read_replay(Path(candidate.replay_exits))
        Replay(file, list(candidate.depths), candidate.depths[-1] * 4 // 3)
        assert file.shares[candidate.depths[0]] > file.long_prompts[0].shares[candidate.depths[0]]


def test_full_shapes_are_the_papers_own(tmp_path: Path):
    size = size_of(HeliosOptions(full_shapes=True, requests=1087))
    assert (size.requests, size.rounds) == (1087, FULL.rounds)
    assert replayed_exits(size, tmp_path).model == "random:opt-1.3b"


def test_real_weights_are_the_default_repository_under_the_floor_asked_for(tmp_path: Path):
    subject = real_weights(HeliosOptions(floor=0.8), QUICK, tmp_path)
    written, embedded = read_repository(subject.repository), read_repository(EMBEDDED_REPOSITORY)
    assert written.candidates == embedded.candidates
    assert (written.floor.agreement, written.loop.reassess_every) == (0.8, QUICK.reassess_every)
    assert subject.early_exit == ("--exits", embedded.candidates[1].exits)


def test_static_systems_have_nothing_to_choose(tmp_path: Path):
    subject = real_weights(HeliosOptions(), QUICK, tmp_path)
    budget = Budget(1 << 30, 200, Footprint({15: 150 << 20, 30: 250 << 20}, {15: 12e3, 30: 24e3}))
    systems = systems_of(subject, budget, None, ())
    counts = [len(repository_of(read_config(system.flags, {})).candidates) for system in systems]
    assert counts[:2] == [1, 1]
    assert counts[2] > 1


def test_exits_of_ones_own_are_candidates_beside_the_whole_model(tmp_path: Path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "exits.json").write_text(json.dumps({"exits": [{"layer": 4}, {"layer": 8}]}))
    subject = real_weights(HeliosOptions(model_id="m", exits=(str(folder),)), QUICK, tmp_path)
    whole, mine = read_repository(subject.repository).candidates
    assert (whole.name, whole.mode, mine.name, mine.depths) == ("full", "full", "mine", (4, 8))
    with pytest.raises(BadQuantity, match="no folder of exits"):
        real_weights(HeliosOptions(exits=(str(tmp_path),)), QUICK, tmp_path)


def test_classes_of_a_file_come_in_its_own_order(tmp_path: Path):
    path = tmp_path / "bench.jsonl"
    lines = [{"category": name, "turns": ["Hello"]} for name in ("writing", "math", "writing", "rag")]
    path.write_bytes(b"\n".join(map(msgspec.json.encode, lines)))
    subject = real_weights(HeliosOptions(dataset=str(path)), QUICK, tmp_path)
    assert (subject.classes, subject.dataset) == (("writing", "math", "rag"), str(path))
