"""Exit statuses, by what came of a command."""

import enum
from typing import Any

from telemetry.terminal.client import Answer


class Status(enum.IntEnum):
    """Exit status of `helios ops`."""

    DONE = 0  # or begun, unless it was to wait
    REFUSED = 1  # by the server, or it failed, or was rolled back
    USAGE = 2
    UNREACHABLE = 3
    FORBIDDEN = 4  # no key, a wrong one, or a command from another machine without an admin key
    UNSETTLED = 5  # still under way when the wait ended


def of_answer(answer: Answer) -> Status:
    if answer.is_success:
        return Status.DONE
    return Status.FORBIDDEN if answer.is_forbidden else Status.REFUSED


def of_decision(decision: dict[str, Any]) -> Status:
    """A decision under way counts as done."""
    return Status.DONE if decision.get("outcome") in (None, "committed") else Status.REFUSED
