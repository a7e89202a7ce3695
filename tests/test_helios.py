"""The command as a newcomer meets it: help, mistakes in one sentence each, and nothing left behind."""

import ast
import os
import re
import signal
import socket
import subprocess
import sys

import psutil
import pytest

import helios
from tests.running import ROOT, command, environment


def run(*arguments, cwd=ROOT, **variables):
    """A real `helios` process, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "helios", *arguments],
        cwd=cwd,
        env=environment() | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def refusal(*flags, cwd=ROOT, **variables):
    """The one sentence with which `helios serve` refuses."""
    result = run("serve", *flags, cwd=cwd, **variables)
    assert result.returncode in (1, 2), result
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_help_names_every_command():
    result = run("--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in helios.COMMANDS)
    assert run().stdout == result.stdout


def test_version_is_that_of_the_project():
    result = run("--version")
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert result.stdout in (f"helios {version}\n", "helios (not installed)\n")


def test_an_unknown_command_names_those_there_are():
    result = run("server")
    assert result.returncode == 2
    assert result.stderr == f"helios has no command 'server': there are {', '.join(helios.COMMANDS)}.\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve"],
        ["pull"],
        ["bench", "engine"],
        ["bench", "serve"],
        ["score"],
        ["calibrate"],
        ["shard"],
        ["ops"],
        ["top"],
    ],
)
def test_every_command_has_help(arguments):
    result = run(*arguments, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: helios {' '.join(arguments)}")


def test_the_command_itself_imports_nothing_of_ours_before_it_knows_which():
    tree = ast.parse((ROOT / "helios.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    imported = {name.name.split(".")[0] for node in imports for name in node.names}
    assert imported <= sys.stdlib_module_names


def test_a_wrong_flag_value_or_file(tmp_path):
    assert refusal("--port", "web") == (
        "helios serve: port must be a whole number, not 'web'. See helios serve --help."
    )
    assert "did you mean --max-batch-size?" in refusal("--max-batch-sise=3")
    assert refusal(PORT="99999").startswith("helios serve: port must be at most 65535, not 99999. (from PORT")
    assert "absent.toml cannot be read" in refusal("--config", str(tmp_path / "absent.toml"))


def test_a_taken_port():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = refusal("--hostname", "127.0.0.1", "--port", str(port))
    assert said == (
        f"helios serve: Port {port} is taken by another process: "
        "stop that one, or choose another port with --port."
    )


def test_an_address_of_another_machine():
    said = refusal("--hostname", "203.0.113.7")
    assert said.startswith(
        "helios serve: 203.0.113.7 is not an address of this machine: set --hostname to one"
    )


def test_no_such_model():
    said = refusal("--model-id", "/no/such/model", "--port", "0")
    assert said == "helios: There is no model at /no/such/model: name a folder, a .gguf file or a hub id."


def test_a_relative_path_is_one_from_where_the_command_was_given(tiny_model):
    folder = tiny_model("llama")
    said = refusal(
        "--model-id",
        folder.name,
        "--port",
        "0",
        "--kv-cache-bytes",
        "9TiB",
        cwd=folder.parent,
        PYTHONPATH=str(ROOT),
    )
    assert said.startswith(f"helios serve: Serving {folder.name} needs about")


def test_a_model_of_the_hub_without_network():
    said = refusal("--model-id", "owner/name", "--port", "0", HF_ENDPOINT="http://127.0.0.1:9")
    assert said.startswith("helios: owner/name is not on this machine and the hub cannot be reached")


def test_an_unsupported_architecture(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    said = refusal("--model-id", str(tmp_path), "--port", "0")
    assert "is of architecture 'mamba', which is not supported: choose a model of llama, " in said


def test_more_memory_than_there_is(tiny_model):
    said = refusal("--model-id", str(tiny_model("llama")), "--port", "0", "--kv-cache-bytes", "100TiB")
    assert re.search(r"needs about [\d.]+ GiB of memory .*: lower --kv-cache-bytes, --num-shards", said)


@pytest.fixture
def endless_download(tmp_path):
    """`helios serve` on a fresh machine whose package index accepts the connection and says nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        variables = {"HELIOS_CACHE": str(tmp_path), "PIP_INDEX_URL": index, "PIP_CONFIG_FILE": os.devnull}
        process = subprocess.Popen(
            command({"port": 0}),
            cwd=ROOT,
            env=environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        silent.settimeout(30)
        connection, _ = silent.accept()  # by pip
        yield process
        connection.close()
    process.kill()
    process.communicate(timeout=30)


@pytest.mark.parametrize("blow", ["ctrl-c", "sigterm", "sigkill"])
def test_told_to_stop_while_the_model_is_fetched(endless_download, blow, tmp_path):
    children = psutil.Process(endless_download.pid).children(recursive=True)
    assert len(children) == 3  # who waits, who works, and pip
    if blow == "ctrl-c":
        os.killpg(endless_download.pid, signal.SIGINT)
    else:
        endless_download.send_signal(signal.Signals[blow.upper()])
    _, said = endless_download.communicate(timeout=30)
    assert endless_download.returncode == {"ctrl-c": 130, "sigterm": 143, "sigkill": -9}[blow]
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert not list(tmp_path.rglob(".partial-*"))
