"""A server in a container: a user without a name or a home, disks that cannot be written to."""

import json
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.containers import Words, as_nobody_known, read_only
from tests.running import ROOT, Server, command, environment
from tests.shard.gguf_files import write_gguf

NOWHERE = "/nonexistent/home"


def is_answering(server: Server) -> bool:
    body = json.dumps({"inputs": "Once", "parameters": {"max_new_tokens": 3}}).encode()
    call = urllib.request.Request(f"{server.url}/generate", body, {"content-type": "application/json"})
    with urllib.request.urlopen(call, timeout=20) as answer:
        return answer.status == 200 and "generated_text" in json.loads(answer.read())


@pytest.mark.parametrize("home", ["/", NOWHERE])
def test_a_model_is_served_to_a_user_without_name_and_home(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path], home: str
) -> None:
    with serve(as_nobody_known(f"HOME={home}"), model_id=tiny_model("llama"), device="sim") as server:
        assert is_answering(server)


def test_a_model_is_served_where_nothing_can_be_written(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path]
) -> None:
    """No place for compiled kernels, none for Redis, none for what is temporary."""
    with serve(read_only("HOME=/"), model_id=tiny_model("llama")) as server:
        assert is_answering(server)
        assert "Serving without telemetry that lasts: " in server.log
        assert "Plain torch operations run" in server.log
        assert "Traceback" not in server.log


def test_a_model_is_made_where_only_its_cache_can_be_written(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    packed = write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf")
    with serve(read_only("HOME=/", but=cache), model_id=packed, cache_dir=cache, device="sim") as server:
        assert is_answering(server)


@pytest.mark.parametrize("within", [as_nobody_known, read_only])
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ((), "helios serve: cache_dir ~/.cache/helios is in a home folder, and none is known for this user"),
        (
            ("HOME=/proc",),
            "helios: Preparing smollm2-135m-instruct in /proc/.cache/helios (--cache-dir) failed",
        ),
    ],
)
def test_without_a_place_for_the_model_that_is_said_in_one_sentence(
    within: Callable[..., Words], variables: Words, said: str
) -> None:
    process = subprocess.run(
        [*within(*variables), *command({"port": 0})],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 1
    assert process.stderr.startswith(said)
    assert len(process.stderr.splitlines()) == 1
