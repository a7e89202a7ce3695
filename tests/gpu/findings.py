"""Findings of a part, one JSON object per line in the file that FINDINGS names, so that they survive a kill.

As a pytest plugin it notes every test as it ends.
"""

import json
import os
from typing import Any

import pytest


def note(kind: str, **facts: Any) -> None:
    """Add a finding."""
    with open(os.environ["FINDINGS"], "a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, **facts}) + "\n")


class Noting:
    """Records all tests of the controlling process."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:  # else workers run the tests
            note("tests", count=len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        note("tests", count=len(ids))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            note("test", id=report.nodeid, outcome="failed", seconds=0.0, why=_last_line(report))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            why = "" if report.passed else _last_line(report)
            note("test", id=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 2), why=why)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Noting(), "findings")


def _last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The error in one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return " ".join(text.split())[:300]
