from array import array
from typing import Any

import pytest

from loadgen.client.records import Record
from loadgen.results.exits import exit_figures
from tests.loadgen.making import record


def answered(group: str, times: list[float], layers: list[int], **changes: Any) -> Record:
    confidences = array("d", [0.5] * len(layers))
    return record(0.0, times, group=group, exit_layers=array("H", layers), confidences=confidences, **changes)


def test_depth_by_class_and_over_time() -> None:
    records = [answered("chat", [0.1, 1.1, 1.2], [10, 10, 30]), answered("code", [0.2, 0.3], [20, 20])]
    found = exit_figures(records, [0.0, 1.0], 0.0)
    assert found is not None
    assert found.total.share_by_layer == {
        10: pytest.approx(0.4),
        20: pytest.approx(0.4),
        30: pytest.approx(0.2),
    }
    assert found.by_group["chat"].mean_layer == pytest.approx(50 / 3)
    assert found.by_group["code"].mean_layer == 20
    assert found.heat.layers == [10, 20, 30]
    assert found.heat.counts == [[1, 1], [2, 0], [0, 1]]


def test_unknown_confidences_are_left_out() -> None:
    record = answered("chat", [0.1, 0.2], [10, 10])
    record.confidences[1] = float("nan")
    found = exit_figures([record], [0.0], 0.0)
    assert found is not None
    assert found.total.mean_confidence == 0.5


def test_a_server_that_tells_no_layers_has_no_figures() -> None:
    assert exit_figures([record(0.0, [0.1])], [0.0], 0.0) is None
