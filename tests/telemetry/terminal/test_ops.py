"""`helios ops` against a real server: what it prints, what it records, and how it ends."""

import getpass
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from telemetry.terminal.client import Client
from telemetry.terminal.ops.__main__ import main
from telemetry.terminal.ops.diary import Diary
from telemetry.terminal.ops.outcome import Status
from tests.running import ROOT, Server
from tests.telemetry.terminal.serving import generate, get, simulated


@pytest.fixture(scope="module")
def server(
    serve: Callable[..., Server],
    tiny_model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("ops")
    with simulated(serve, tiny_model, folder, num_shard=2) as server:
        yield server


Ops = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ops(server: Server, capsys: pytest.CaptureFixture[str]) -> Ops:
    """`ops("swap", "chat")` runs the command; returns its status, standard output and standard error."""

    def run(*arguments: str, url: str = server.url) -> tuple[int, str, str]:
        status = main([*arguments, "--url", url])
        printed = capsys.readouterr()
        return int(status), printed.out, printed.err

    return run


def test_changes_are_done_when_it_has_waited_and_are_told_with_who_and_from_where(
    server: Server, ops: Ops
) -> None:
    for arguments, wanted in [
        (("swap", "code"), ("code", 30)),
        (("rollback",), ("chat", 30)),
        (("depth", "20", "--shard", "0"), ("chat", 20)),
        (("pin", "chat", "--depth", "10"), ("chat", 10)),
        (("swap", "chat"), ("chat", 30)),
    ]:
        status, out, _ = ops(*arguments, "--wait")
        assert (status, "committed" in out) == (0, True), out
        shard = get(server, "/ops/state")["shards"][0]
        assert (shard["model"], shard["depth"]) == wanted
    assert get(server, "/ops/state")["pinned"] == "chat at 10 layers"
    assert ops("unpin")[0] == 0
    told = get(server, "/ops/decisions")["decisions"]
    assert [decision["kind"] for decision in told[:3]] == ["unpin", "swap", "pin"]
    assert {decision["by"].partition("@")[0] for decision in told} == {getpass.getuser()}
    assert {decision["origin"] for decision in told} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("swap", "broken", "--wait"), Status.REFUSED, ""),
        (
            ("swap", "nothing"),
            Status.REFUSED,
            "There is no candidate 'nothing'; there are chat, code, broken.",
        ),
        (("depth", "7"), Status.REFUSED, "'chat' has no depth 7; it has 10, 20, 30."),
        (("drain", "--shard", "9"), Status.REFUSED, "must be one of 0, 1"),
        (("cache-clear", "--shard", "9"), Status.REFUSED, "must be one of 0, 1"),
        (("request", "99999"), Status.REFUSED, "There is no request 99999"),
        (("request", "../state"), Status.REFUSED, "There is no request"),
        (("abort", "99999"), Status.REFUSED, "There is no request 99999"),
    ],
)
def test_what_is_refused_or_fails_ends_with_one_and_the_servers_sentence(
    ops: Ops, arguments: tuple[str, ...], status: Status, sentence: str
) -> None:
    got, out, err = ops(*arguments)
    assert got == status
    assert sentence in err
    assert err or ("rolled_back" in out and "Its weights are gone." in out)


def test_a_wait_that_ends_first_says_so(ops: Ops) -> None:
    status, out, err = ops("swap", "code", "--wait", "--timeout", "0.05")
    assert (status, err) == (Status.UNSETTLED, "helios ops: It is still under way.\n")
    id = out.split()[1]
    assert "under way" in out
    while "under way" in out:
        _, out, _ = ops("decisions", id)
    assert "committed" in out
    assert ops("rollback", "--wait")[0] == 0


def test_a_server_that_is_not_there_and_what_is_no_command(ops: Ops) -> None:
    status, out, err = ops("state", url="http://127.0.0.1:9")
    assert (status, out) == (Status.UNREACHABLE, "")
    assert err.startswith("helios ops: No server answers at http://127.0.0.1:9:")
    assert ops("state", url="ftp://x")[0] == Status.USAGE
    assert main(["--url", "ftp://x", "state"]) == Status.USAGE
    for wrong in (
        ["threshold", "2"],
        ["depth", "0"],
        ["drain", "--shard", "-1"],
        ["watch", "--interval", "0"],
        [],
    ):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == Status.USAGE


def test_tables_and_json_hold_what_the_server_says(
    server: Server, ops: Ops, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(server, 7)
    state = get(server, "/ops/state")
    _, out, _ = ops("state", "--json")
    assert json.loads(out)["deployment"] == state["deployment"]
    assert main(["--url", server.url, "--json", "state"]) == Status.DONE
    assert json.loads(capsys.readouterr().out)["deployment"] == state["deployment"]
    _, out, _ = ops("state")
    for shard in state["shards"]:
        assert f"{shard['depth']}/{shard['num_layers']}" in out
        assert shard["version"] in out
    row = get(server, "/ops/requests")["requests"][0]
    _, out, _ = ops("requests")
    assert [str(row["id"]), row["label"], "finished", "length"] == out.splitlines()[2].split()[:4]
    _, out, _ = ops("request", str(row["id"]))
    assert "finished: length" in out
    assert "7 generated" in out
    _, out, _ = ops("decisions", "--limit", "1", "--json")
    assert len(json.loads(out)["decisions"]) == 1


def test_a_cache_that_is_cleared_is_empty_and_the_diary_says_so(server: Server, ops: Ops) -> None:
    generate(server, 40)
    assert sum(shard["cache"]["known_blocks"] for shard in get(server, "/ops/state")["shards"]) > 0
    status, out, _ = ops("cache-clear")
    assert status == 0
    assert int(out.split()[0]) > 0
    while any(shard["cache"]["known_blocks"] for shard in get(server, "/ops/state")["shards"]):
        pass
    assert get(server, "/ops/decisions")["decisions"][0]["kind"] == "cache-clear"
    assert "0.0%" in ops("state")[1] or " - " in ops("state")[1]


def test_a_drain_waits_for_what_runs(server: Server, ops: Ops) -> None:
    call = threading.Thread(target=generate, args=(server, 300))
    call.start()
    while get(server, "/ops/state")["running"] == 0:
        pass
    assert ops("drain", "--wait", "--timeout", "0.05")[0] == Status.UNSETTLED
    status, out, _ = ops("drain", "--wait")
    assert status == 0
    assert get(server, "/ops/state")["running"] == 0
    assert "draining" in out
    call.join()
    status, out, _ = ops("resume")
    assert status == 0
    assert "draining" not in out


def test_a_request_is_ended_and_the_threshold_set(server: Server, ops: Ops) -> None:
    failures: list[int] = []

    def call() -> None:
        try:
            generate(server, 3000)
        except HTTPError as error:
            failures.append(error.code)
            error.close()

    caller = threading.Thread(target=call)
    caller.start()
    while not (live := [row for row in get(server, "/ops/requests")["requests"] if row["outcome"] is None]):
        pass
    assert ops("abort", str(live[0]["id"]))[:2] == (0, f"Request {live[0]['id']} is ended.\n")
    caller.join(10)
    assert failures == [424]
    assert ops("threshold", "0.5")[0] == 0
    assert "0.5, set by " in ops("state")[1]
    assert ops("threshold", "own")[0] == 0
    assert get(server, "/ops/state")["threshold"]["value"] is None


def test_a_wrong_key_is_told_apart_and_the_right_one_may_come_from_a_file(
    serve: Callable[..., Server],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "key").write_text("sesame\n")
    with simulated(serve, tiny_model, tmp_path, "sesame", admin_key_file=tmp_path / "key") as server:
        for flags, status in [
            ([], Status.FORBIDDEN),
            (["--admin-key", "wrong"], Status.FORBIDDEN),
            (["--admin-key-file", str(tmp_path / "none")], Status.USAGE),
            (["--admin-key-file", str(tmp_path / "key")], Status.DONE),
        ]:
            assert main(["unpin", "--url", server.url, *flags]) == status
        assert "sesame" not in "".join(capsys.readouterr())


def test_the_diary_is_printed_as_it_is_written(server: Server, ops: Ops) -> None:
    command = [sys.executable, "-m", "helios", "ops", "watch", "--url", server.url, "--json"]
    with subprocess.Popen(
        [*command, "--limit", "0", "--interval", "0.05"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        try:
            told: list[dict[str, Any]] = []
            reader = threading.Thread(
                target=lambda: told.extend(json.loads(watching.stdout.readline()) for _ in range(2))
            )
            reader.start()
            while reader.is_alive():
                ops("swap", "code", "--wait")
                ops("rollback", "--wait")
                reader.join(0.1)
            reader.join(20)
            assert len(told) == 2
            assert told[0]["kind"] in ("swap", "rollback")
        finally:
            watching.kill()


def test_a_decision_is_news_when_it_is_taken_and_when_it_is_settled() -> None:
    diary = Diary()
    first = {"id": "1", "at": 100.0, "outcome": None}
    second = {"id": "2", "at": 500.0, "outcome": "committed"}
    assert diary.news([second, first]) == [first, second]
    assert diary.news([second, first]) == []
    assert 99 < diary.since < 100
    settled = first | {"outcome": "failed"}
    assert diary.news([second, settled]) == [settled]
    assert 400 < diary.since < 500


def test_an_address_is_checked_before_it_is_called() -> None:
    assert Client("https://host:1/prefix/").url == "https://host:1/prefix"
    for url in ("localhost:3000", "http://", "http://host:port", "redis://host"):
        with pytest.raises(ValueError, match="is no address of a server"):
            Client(url)
