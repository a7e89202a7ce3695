"""The whole experiment with simulated shards behind real servers: started, loaded, stopped, compared."""

import json
from pathlib import Path

import msgspec
import psutil

from loadgen.load.live import choose_view
from loadgen.load.measure import Screen
from loadgen.paper.experiment import Experiment
from loadgen.paper.files import write_repository
from loadgen.paper.options import HeliosOptions, Size
from loadgen.paper.outcome import outcomes_of
from loadgen.paper.subject import Subject
from loadgen.paper.systems import EARLY, FULL, HELIOS

COSTS = {
    "classes": [{"settled": {"24": 0.9}}]
}  # beside what every simulated shard has: the full model is one
SIZE = Size(
    narrowing=1, batch=3, requests=12, rounds=1, output_tokens=(8, 12), reassess_every=150, breach_window=100
)


def children() -> set[psutil.Process]:
    """Other tests may have servers of their own."""
    return set(psutil.Process().children(recursive=True))


async def test_helios_capped_answers_faster_in_the_same_memory(tiny_model, tmp_path: Path):
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps(COSTS))
    model = str(tiny_model("llama"))
    subject = Subject(
        name="simulation",
        model=model,
        num_layers=30,
        early_exit=("--exit-layers", "24", "--cost-model", str(costs)),
        depths=(24,),
        repository=write_repository(tmp_path / "r.toml", {}, [{"name": "small", "model": model}]),
        classes=("chat", "story"),
        is_replay=True,
    )
    options = HeliosOptions(device="sim", depth=24, quiet=True)
    experiment = Experiment(options, SIZE, Screen(choose_view(is_quiet=True), "test"))
    before = children()
    part = await experiment.run(subject)
    assert children() <= before
    equal, largest = outcomes_of(part)
    assert (equal.load.in_flight, equal.systems[FULL].largest_batch) == (3, 3)
    assert equal.systems[HELIOS].share_by_layer == {24: 1.0}
    assert largest.load.in_flight == largest.systems[HELIOS].largest_batch > 3
    assert largest.systems[HELIOS].most_running > largest.systems[EARLY].most_running
    gain = largest.gains[FULL].throughput
    assert gain is not None
    assert gain.estimate > 1
    assert all(system.lost == 0 for outcome in (equal, largest) for system in outcome.systems.values())
    assert msgspec.json.encode(equal)
