"""Many shards in virtual time: decisions stay right, nobody is lost while all of them change."""

import asyncio
import time

import pytest

from router.simulation import virtual
from router.simulation.bench import Asked, Result, measure


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Result:
    return virtual.run(
        measure(Asked(num_shards=30, num_requests=2100, num_shifts=2), tmp_path_factory.mktemp("l"))
    )


def test_time_passes_only_where_everybody_waits():
    async def sleep_long() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert virtual.run(sleep_long()) == pytest.approx(3600)
    assert time.monotonic() - began < 60


def test_nobody_is_lost_while_all_shards_change(large):
    assert large.num_failed == 0
    assert sum(phase.num_requests for phase in large.phases) == 2100


def test_each_kind_comes_to_be_served_by_exits_of_its_own(large):
    assert [phase.kind for phase in large.phases] == ["chat", "code", "chat"]
    assert all(phase.num_right > phase.num_requests / 4 for phase in large.phases)


def test_the_decisions_tell_what_happened(large):
    kinds = [line.split()[1] for line in large.decisions]
    assert kinds[0] == "evaluate"
    assert {"switch", "deepen"} & set(kinds)
    assert len(kinds) < 40


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Result:
    asked = Asked(num_shards=6, num_requests=60, num_shifts=0, num_mixed=900)
    return virtual.run(measure(asked, tmp_path_factory.mktemp("m")))


def test_a_mixed_stream_comes_to_be_served_by_exits_of_each_kind(mixed):
    assert mixed.num_failed == 0
    assert [(phase.kind, phase.num_requests > 400) for phase in mixed.phases[1:]] == [
        ("chat", True),
        ("code", True),
    ]
    assert all(phase.num_right > 0.8 * phase.num_requests for phase in mixed.phases[1:])


def test_a_split_is_told_in_the_diary_and_stays(mixed):
    kinds = [line.split()[1] for line in mixed.decisions]
    assert "split" in kinds
    since = kinds[kinds.index("split") :]
    assert set(since) <= {"split", "stay"}
    assert since.count("split") <= 3
