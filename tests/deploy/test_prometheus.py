"""Rules and dashboard ask for what a running server shows."""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.promql import names
from tests.running import ROOT, Server

RULES = ROOT / "deploy/prometheus/alerts.yml"
DASHBOARD = ROOT / "deploy/grafana/dashboards/helios.json"
FROM_PROMETHEUS = {"instance", "job"}  # labels of the target
VARIABLES = {"$__rate_interval": "1m", "${datasource}": "prometheus"}
WANTED_ALERTS = """AgreementUnderFloor BreachesOften ShardFlaps SwapsFail QueueGrows RedisLost RefusesCalls
    ServesNothing TelemetryDropped PreemptsOften"""
PROMTOOL = shutil.which("promtool")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    """(expression, text that may name labels as {{label}})"""
    board = dashboard()
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"], target["legendFormat"]
    for annotation in board["annotations"]["list"]:
        yield annotation["expr"], annotation["titleFormat"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"], ""


def expressions() -> list[tuple[str, str]]:
    of_rules = [(rule["expr"], rule["annotations"]["summary"]) for rule in rules()]
    found = [*of_rules, *dashboard_expressions()]
    for variable, value in VARIABLES.items():
        found = [(expression.replace(variable, value), text) for expression, text in found]
    return found


def labels_of(server: Server) -> dict[str, set[str]]:
    """Labels of each series that /metrics shows."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:{(.*)})? ", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


@pytest.fixture(scope="module")
def shown(serve: Callable[..., Server], tiny_model: Callable[[str], Path]) -> dict[str, set[str]]:
    """What a server shows that has changed its model, failed, and scored an answer."""
    settings = {"model_id": tiny_model("llama"), "device": "sim", "watts": 50, "score_rate": 1.0}
    with serve(**settings) as server:
        asked = {"inputs": "Hi", "parameters": {"max_new_tokens": 8, "ignore_eos": True}}
        call(server, "/generate", asked)
        with urllib.request.urlopen(server.url + "/ops/state", timeout=10) as answer:
            candidate = json.load(answer)["candidates"][0]
        call(server, "/ops/swap", {"candidate": candidate["candidate"], "depth": candidate["depth"]})
        deadline = time.monotonic() + 30
        while True:
            found = labels_of(server)
            if {"helios_agreement", "helios_swap_phase_seconds_sum", "helios_joules_total"} <= found.keys():
                return found
            assert time.monotonic() < deadline, sorted(found)
            time.sleep(0.2)


def call(server: Server, path: str, body: Any) -> None:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status in (200, 202)


def test_every_metric_and_label_that_is_asked_for_exists(shown: dict[str, set[str]]) -> None:
    checked = 0
    for expression, text in expressions():
        wanted = list(names(expression))
        metrics = [name for name, _ in wanted if name in shown or name.startswith(("helios_", "tgi_"))]
        assert metrics, expression
        known = set().union(*(shown.get(name, set()) for name in metrics)) | FROM_PROMETHEUS
        for name, labels in wanted:
            if name in metrics:
                assert name in shown, f"{name} of {expression}"
                assert labels <= shown[name] | FROM_PROMETHEUS, f"{labels} of {expression}"
            else:
                assert name in known or not name, f"{name} of {expression}"
                assert labels <= known, f"{labels} of {expression}"
        told = re.findall(r"{{ ?(?:\$labels\.)?(\w+) ?}}", text)
        assert set(told) <= known, f"{text} of {expression}"
        checked += 1
    assert checked > 60


def test_an_unknown_name_is_found(shown: dict[str, set[str]]) -> None:
    [(_, by), (metric, labels)] = names('sum by (planet) (rate(helios_x_total{a="b"}[5m]))')
    assert (metric, labels, by) == ("helios_x_total", {"a"}, {"planet"})
    assert metric not in shown
    with pytest.raises(ValueError, match="bracket"):
        list(names("sum(rate(x[5m])"))
    with pytest.raises(ValueError, match="is no function"):
        list(names("summe(x)"))


def test_what_an_operator_must_hear_of_is_an_alert() -> None:
    assert {rule["alert"] for rule in rules()} == {f"Helios{name}" for name in WANTED_ALERTS.split()}
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    taken: set[tuple[int, int]] = set()
    panels = dashboard()["panels"]
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian's package prometheus) is not installed")
def test_alerts_fire_when_they_should_and_not_before() -> None:
    assert PROMTOOL is not None
    for arguments in (["check", "rules", str(RULES)], ["test", "rules", "tests/deploy/alerts_test.yml"]):
        result = subprocess.run([PROMTOOL, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stdout + result.stderr
