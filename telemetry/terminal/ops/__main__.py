"""The command `helios ops`: one call, its answer as a table or as JSON, and an exit status."""

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from rich.console import RenderableType

from telemetry.terminal.client import Answer, Client, Unreachable, WrongAddress, client_of
from telemetry.terminal.ops import arguments, tables
from telemetry.terminal.ops.diary import watch
from telemetry.terminal.ops.outcome import Status, of_answer, of_decision

_POLL_S = 0.2

Body = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    flags = arguments.parse(sys.argv[1:] if argv is None else argv)
    try:
        return Operator(client_of(flags), flags).run()
    except WrongAddress as error:
        return _fail(str(error), Status.USAGE)
    except Unreachable as error:
        return _fail(str(error), Status.UNREACHABLE)


class Operator:
    """Carries out one command line."""

    def __init__(self, client: Client, flags: Namespace):
        self._client = client
        self._flags = flags

    def run(self) -> Status:
        """Raises `Unreachable`."""
        flags, client = self._flags, self._client
        match flags.command:
            case "state":
                return self._show(client.get("/ops/state"), tables.state)
            case "decisions" if flags.id:
                return self._show(client.get(f"/ops/decisions/{_part(flags.id)}"), tables.decision)
            case "decisions":
                answer = client.get(f"/ops/decisions?limit={flags.limit}")
                return self._show(answer, lambda body: tables.decisions(body["decisions"]))
            case "requests":
                return self._show(client.get("/ops/requests"), lambda body: tables.requests(body["requests"]))
            case "request":
                return self._show(client.get(f"/ops/requests/{_part(flags.id)}"), tables.request)
            case "watch":
                return watch(client, flags)
            case "drain" | "resume":
                return self._drain_or_resume()
            case "abort":
                return self._abort()
            case "cache-clear":
                return self._clear_cache()
            case _:
                return self._change()

    def _change(self) -> Status:
        """A command that becomes a decision."""
        flags = self._flags
        path = "/ops/swap" if flags.command == "depth" else f"/ops/{flags.command}"
        wish = {name: getattr(flags, name, None) for name in ("candidate", "depth", "shard", "inflight")}
        body = {name: value for name, value in wish.items() if value is not None}
        if flags.command == "threshold":
            body = {"value": flags.value}
        if flags.command == "depth":
            state = self._client.get("/ops/state")
            if not state.is_success:
                return self._refuse(state)
            served = _served(state.body, flags.shard)
            if len(served) != 1:
                models = ", ".join(sorted(served)) or "none"
                why = f"The shards do not serve one model but {models}: use swap, or --shard."
                return _fail(why, Status.REFUSED)
            body["candidate"] = served.pop()
        answer = self._client.post(path, body)
        return self._follow(answer.body["decision_id"]) if answer.is_success else self._refuse(answer)

    def _follow(self, id: str) -> Status:
        """Show the decision: as it is now, or once it is settled."""
        give_up = time.monotonic() + self._flags.timeout
        while True:
            answer = self._client.get(f"/ops/decisions/{id}")
            if not answer.is_success:
                return self._refuse(answer)
            is_settled = answer.body["outcome"] is not None
            if is_settled or not self._flags.wait or time.monotonic() > give_up:
                break
            time.sleep(_POLL_S)
        self._show(answer, tables.decision)
        if not is_settled and self._flags.wait:
            return _fail("It is still under way.", Status.UNSETTLED)
        return of_decision(answer.body)

    def _drain_or_resume(self) -> Status:
        flags = self._flags
        answer = self._client.post(f"/ops/{flags.command}", {"shard": flags.shard})
        give_up = time.monotonic() + getattr(flags, "timeout", 0.0)
        while answer.is_success and getattr(flags, "wait", False) and _running(answer.body, flags.shard):
            if time.monotonic() > give_up:
                return _fail("Requests still run.", Status.UNSETTLED)
            time.sleep(_POLL_S)
            answer = self._client.get("/ops/state")
        return self._show(answer, tables.state)

    def _abort(self) -> Status:
        answer = self._client.post("/ops/abort", {"request_id": self._flags.id})
        if not answer.is_success:
            return self._refuse(answer)
        self._print(
            answer, f"Request {self._flags.id} " + ("is ended." if answer.body["aborted"] else "had ended.")
        )
        return Status.DONE

    def _clear_cache(self) -> Status:
        answer = self._client.post("/ops/cache/clear", {"shard": self._flags.shard})
        if not answer.is_success:
            return self._refuse(answer)
        self._print(answer, f"{answer.body['tokens']} tokens are found no more.")
        return Status.DONE

    def _show(self, answer: Answer, table: Callable[[Body], RenderableType]) -> Status:
        if not answer.is_success:
            return self._refuse(answer)
        self._print(answer, table(answer.body) if not self._flags.json else "")
        return of_answer(answer)

    def _refuse(self, answer: Answer) -> Status:
        if self._flags.json:
            self._print(answer, "")
        return _fail(answer.error, of_answer(answer))

    def _print(self, answer: Answer, shown: RenderableType) -> None:
        if self._flags.json:
            print(msgspec.json.format(msgspec.json.encode(answer.body), indent=2).decode())
        else:
            tables.console().print(shown)


def _served(state: Body, shard: int | None) -> set[str]:
    """Models that the shards serve."""
    return {row["model"] for row in state["shards"] if row["model"] and shard in (None, row["id"])}


def _running(state: Body, shard: int | None) -> int:
    return sum(row["running"] for row in state["shards"] if shard in (None, row["id"]))


def _part(text: str) -> str:
    """A part of a path: of other letters than ours there is none."""
    return "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "_" for letter in text
    )


def _fail(sentence: str, status: Status) -> Status:
    print(f"helios ops: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
