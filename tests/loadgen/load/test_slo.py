import pytest

from loadgen.cli.units import BadQuantity
from loadgen.client.records import Outcome
from loadgen.load.slo import SLO
from tests.loadgen.making import record

GOOD = record(10.0, [10.2, 10.25, 10.3])


def test_a_request_is_good_if_it_keeps_every_bound() -> None:
    assert SLO.parse(("ttft:250ms", "tpot:60ms", "gap:0.1s", "e2e:1s")).are_met(GOOD)
    for broken in ("ttft:150ms", "tpot:40ms", "gap:40ms", "e2e:0.2s"):
        assert not SLO.parse((broken,)).are_met(GOOD)


def test_what_did_not_end_well_is_never_good() -> None:
    assert not SLO().are_met(record(10.0, [10.2], outcome=Outcome.STALL))
    assert SLO().are_met(GOOD)


def test_bounds_are_told_in_words() -> None:
    assert SLO.parse(("ttft:0.5s", "tpot:50ms")).words == "ttft <= 500 ms, tpot <= 50 ms"
    assert not SLO().are_stated


@pytest.mark.parametrize("text", ["fast", "ttft", "ttft:soon", "p99:3s"])
def test_what_is_no_objective_is_a_sentence(text: str) -> None:
    with pytest.raises(BadQuantity):
        SLO.parse((text,))
