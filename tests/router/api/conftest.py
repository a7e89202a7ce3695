"""A served fake for every test of the HTTP side."""

import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.router.http_fakes import Client, serving


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving() as client:
        yield client


PACKAGES = {"current": "@huggingface/inference@4.13.30", "former": "@huggingface/inference@2.8.1"}


@pytest.fixture(scope="session")
def js_clients(pytestconfig: pytest.Config) -> Path:
    """A folder with both packages, installed into pytest's cache once."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    folder = pytestconfig.cache.mkdir("js-clients")
    installed = [f"{name}@npm:{package}" for name, package in PACKAGES.items()]
    if not all((folder / "node_modules" / name).is_dir() for name in PACKAGES):
        command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", *installed]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
        if ran.returncode != 0:
            pytest.skip(f"npm cannot install {installed}: {ran.stderr.strip()[-300:]}")
    return folder / "node_modules"
