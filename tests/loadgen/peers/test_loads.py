"""The loads of a comparison: equal work for both servers, and no prompt twice."""

import pytest

from loadgen.cli.units import BadQuantity
from loadgen.peers.loads import TTFT_REQUESTS, loads_of
from loadgen.peers.options import PeerOptions
from loadgen.traffic.filler import Filler


def test_every_load_is_greedy_and_ignores_the_end_of_text():
    loads = list(loads_of(PeerOptions(streams="1,8", seconds=2.0)))
    assert [load.name for load in loads] == ["512-token prompt alone", "1 stream", "8 streams"]
    assert [load.plan.options.concurrency for load in loads] == [1, 1, 8]
    assert all(load.plan.ignores_eos and load.plan.options.temperature == 0 for load in loads)
    assert loads[0].plan.num_requests == TTFT_REQUESTS
    assert loads[1].plan.duration_s == 2.0


def test_no_prompt_comes_in_two_loads_or_two_rounds():
    plans = [load.plan for load in loads_of(PeerOptions(streams="1,8,32"))]
    workloads = [plan.workload(Filler(), seed_offset=index) for plan in plans for index in range(5)]
    prompts = [workload.draw(number, 0.0).turns[0] for workload in workloads for number in range(20)]
    assert len({prompt[:40] for prompt in prompts}) == len(prompts)


def test_without_long_prompts_streams_alone_are_measured():
    assert [load.name for load in loads_of(PeerOptions(streams="2", ttft_tokens=0))] == ["2 streams"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rounds": 0}, "--rounds must be at least 1, not 0"),
        ({"output_tokens": 1}, "--output-tokens must be at least 2, not 1"),
        ({"streams": "1,x"}, "--streams"),
        ({"streams": "1.5"}, "--streams needs whole numbers"),
        ({"seconds": 0.0}, "--seconds"),
        ({"num_threads": 0}, "--num-threads must be at least 1"),
    ],
)
def test_a_bad_option_is_named_with_its_bound(changes, says):
    with pytest.raises(BadQuantity, match=says):
        PeerOptions(**changes).check()
