"""Two small servers of known speed, started, compared and stopped."""

from pathlib import Path

import psutil
import pytest
from rich.console import Console

from loadgen.client.server_info import Unusable
from loadgen.load.live import choose_view
from loadgen.load.measure import Screen
from loadgen.peers.duel import Duel, Plans, duel
from loadgen.peers.launch import Launch
from loadgen.peers.loads import TTFT_REQUESTS, loads_of
from loadgen.peers.machine import this_machine
from loadgen.peers.options import PeerOptions
from loadgen.peers.table import Report, line_of, rounds_of, show
from loadgen.servers.process import ServerCommand
from tests.loadgen.fake_server import fake

OPTIONS = PeerOptions(streams="1,4", rounds=2, seconds=0.3, input_tokens=16, output_tokens=8, ttft_tokens=64)


def named(name: str, server: ServerCommand) -> ServerCommand:
    return ServerCommand(name, server.command, server.ready_path)


async def compared(peer: ServerCommand, helios: ServerCommand, logs: Path) -> Duel:
    launch = Launch("fake weights", named("Peer", peer), named("Helios", helios))
    plans = Plans(list(loads_of(OPTIONS)), OPTIONS.rounds)
    return await duel(launch, "fake 1", plans, logs, Screen(choose_view(is_quiet=True), "test"))


async def test_the_faster_server_has_a_ratio_above_one_under_every_load(tmp_path: Path):
    found = await compared(fake(itl_s=0.03), fake(itl_s=0.002), tmp_path)
    assert [outcome.load for outcome in found.outcomes] == ["64-token prompt alone", "1 stream", "4 streams"]
    for outcome in found.outcomes:
        ratios = {ratio.measure: ratio for ratio in outcome.ratios}
        assert ratios["output tokens/s"].ratio.estimate > 1
        assert ratios["output tokens/s"].rounds == 2
        assert ratios["TTFT mean"].ratio.estimate < 1
        assert outcome.failed == 0
    assert not any("unequal" in note for note in found.notes)
    assert found.commands["Peer"] != found.commands["Helios"]
    report = Report("1.0", this_machine(), {"rounds": 2}, [found], {"vLLM": "it is not there"})
    line = line_of(report)
    assert line["peers"]["Peer"]["loads"]["4 streams"]["output tokens/s"]["ratio"] > 1
    assert len(rounds_of([found])["Peer"]["1 stream"]) == 2
    console = Console(width=200, record=True)
    show(report, console)
    text = console.export_text()
    for words in ("4 streams", "output tokens/s", "95% interval", "vLLM was not compared: it is not there"):
        assert words in text
    assert found.commands["Peer"] in text.replace("\n", "")
    assert str(this_machine().num_cores) in text


async def test_answers_of_unequal_length_are_remarked(tmp_path: Path):
    found = await compared(fake(answer_tokens=5), fake(), tmp_path)
    assert any("unequal output tokens a request: Peer 5.0, Helios 8.0" in note for note in found.notes)


async def test_requests_that_fail_are_told_with_their_reason(tmp_path: Path):
    found = await compared(fake(refuses_long=True), fake(), tmp_path)
    assert found.outcomes[0].failed == OPTIONS.rounds * TTFT_REQUESTS
    assert any("Peer, 64-token prompt alone, round 1: 4 x " in note for note in found.notes)


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
async def test_a_server_that_spins_is_stopped_during_the_other_ones_turns(tmp_path: Path):
    found = await compared(fake(spins=True), fake(), tmp_path)
    assert "it was stopped during the other one's turns" in " ".join(found.notes)
    assert sum(outcome.failed for outcome in found.outcomes) == 0


async def test_a_server_that_does_not_start_ends_the_other_one(tmp_path: Path):
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(Unusable, match=r"Helios ended: out of luck \(log: .*helios.log\)"):
        await compared(fake(), fake(dies="out of luck"), tmp_path)
    assert set(psutil.Process().children(recursive=True)) <= before
