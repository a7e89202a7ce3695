import pytest

from loadgen.cli.units import BadQuantity
from loadgen.traffic.drift import Schedule


def test_classes_change_with_time() -> None:
    schedule = Schedule.parse("chat@30s, code@1m, chat=3+code@10s")
    assert schedule.at(0, 29.9).mixture == {"chat": 1.0}
    assert schedule.at(0, 30.0).mixture == {"code": 1.0}
    assert schedule.at(0, 95.0).mixture == {"chat": 3.0, "code": 1.0}
    assert schedule.duration_s == 100
    assert schedule.num_requests is None


def test_classes_change_with_requests() -> None:
    schedule = Schedule.parse("chat@150, code@50")
    assert schedule.at(149, 1e9).mixture == {"chat": 1.0}
    assert schedule.at(150, 0.0).mixture == {"code": 1.0}
    assert schedule.num_requests == 200


def test_the_last_phase_holds_on() -> None:
    assert Schedule.parse("chat@1s, code@1s").at(0, 100.0).mixture == {"code": 1.0}
    assert Schedule.parse("chat@1s, code").at(0, 100.0).mixture == {"code": 1.0}


def test_all_classes_are_named() -> None:
    assert Schedule.parse("chat@1s, code+story@1s").groups == {"chat", "code", "story"}


@pytest.mark.parametrize("text", ["chat@", "@30s", "chat@soon", "chat@30s, code@20", "chat=x@3s", ""])
def test_a_schedule_that_is_none_is_a_sentence(text: str) -> None:
    with pytest.raises(BadQuantity):
        Schedule.parse(text)
