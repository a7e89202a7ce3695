"""Fixtures for the shard's tests."""

from pathlib import Path

import pytest

from tests.shard.trained_model import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose every layer is an exit; tests/shard/trained_model.py says what it speaks."""
    return train(tmp_path_factory.mktemp("trained"))
