"""`helios ops watch`: prints decisions when they are taken and again when they are settled."""

import sys
import time
from argparse import Namespace
from typing import Any

import msgspec

from telemetry.terminal.client import Client, Unreachable
from telemetry.terminal.ops import tables
from telemetry.terminal.ops.outcome import Status, of_answer

_OVERLAP_S = 60.0  # a decision of another router may come this late
_MAX_READ = 200
_MAX_KNOWN = 2000

Body = dict[str, Any]


class Diary:
    """Decisions seen so far. Pure."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, str | None]] = {}  # by id: time and outcome

    def news(self, decisions: list[Body]) -> list[Body]:
        """Those that are new or whose outcome is, the earliest first."""
        told = sorted(decisions, key=lambda body: str(body["id"]))
        news = [body for body in told if self._known.get(body["id"]) != (body["at"], body["outcome"])]
        self._known |= {body["id"]: (body["at"], body["outcome"]) for body in news}
        while len(self._known) > _MAX_KNOWN:
            del self._known[next(iter(self._known))]
        return news

    @property
    def since(self) -> float:
        """Time from which decisions may have news."""
        pending = [at for at, outcome in self._known.values() if outcome is None]
        latest = max((at for at, _ in self._known.values()), default=0.0)
        return max(0.0, min([latest - _OVERLAP_S, *(at - 1e-3 for at in pending)]))


def watch(client: Client, flags: Namespace) -> Status:
    """Print until Ctrl-C. A server that is away is waited for; a refusal ends it."""
    diary, is_away, is_first = Diary(), False, True
    while True:
        try:
            answer = client.get(f"/ops/decisions?limit={_MAX_READ}&since={diary.since}")
        except Unreachable as error:
            if not is_away:
                print(f"helios ops: {error} Waiting for it.", file=sys.stderr, flush=True)
            is_away = True
        else:
            if not answer.is_success and (answer.is_forbidden or answer.status < 500):
                print(f"helios ops: {answer.error}", file=sys.stderr)
                return of_answer(answer)
            if is_away:
                print("helios ops: The server is back.", file=sys.stderr, flush=True)
            is_away = False
            if answer.is_success:
                news = diary.news(answer.body["decisions"])
                _print(news[max(0, len(news) - flags.limit) :] if is_first else news, flags.json)
                is_first = False
        time.sleep(flags.interval)


def _print(decisions: list[Body], as_json: bool) -> None:
    for body in decisions:
        print(msgspec.json.encode(body).decode() if as_json else tables.diary_line(body), flush=True)
