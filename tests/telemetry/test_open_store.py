"""A store for as long as a server lives, with or without a Redis."""

import shutil
import tempfile
from pathlib import Path

import psutil
import pytest

from telemetry import open_store as keeping_module
from telemetry.open_store import open_store


def redis_children():
    return [child for child in psutil.Process().children() if "redis" in child.name()]


async def test_without_an_address_an_embedded_one_lives_as_long():
    async with open_store(None, "poems", "one") as store:
        assert store.is_ok
        servers = redis_children()
        assert len(servers) == 1
    assert not servers[0].is_running()


async def test_without_any_redis_at_all_it_goes_on(monkeypatch, caplog):
    monkeypatch.setattr(keeping_module, "find_server", lambda: None)
    async with open_store(None, "poems", "one") as store:
        assert not store.is_ok
    assert "No redis-server was found" in caplog.text
    monkeypatch.setattr(keeping_module, "find_server", lambda: Path(shutil.which("false")))
    async with open_store(None, "poems", "one") as store:
        assert not store.is_ok
    assert "did not start" in caplog.text


async def test_without_a_folder_for_a_redis_of_its_own_it_goes_on(monkeypatch, caplog):
    def refuse(**_):
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    async with open_store(None, "poems", "one") as store:
        assert not store.is_ok
    assert "Serving without telemetry that lasts: No usable temporary directory" in caplog.text


async def test_a_redis_that_is_not_there_is_no_error(caplog):
    async with open_store("redis://127.0.0.1:9/0", "poems", "one") as store:
        assert not store.is_ok
    assert "Redis is of no use now" in caplog.text


async def test_an_address_of_something_else_is_refused():
    with pytest.raises(ValueError, match="URL"):
        async with open_store("http://localhost", "poems", "one"):
            pass
