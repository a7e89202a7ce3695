"""What the tests of shards on other hosts have in common."""

from pathlib import Path

import pytest


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file with what routers are asked for."""
    path = tmp_path / "secret"
    path.write_text("open sesame\n")
    return path
