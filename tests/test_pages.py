"""README, ARCHITECTURE and docs: what they point at is there."""

import re
from pathlib import Path

import pytest

from tests.running import ROOT

PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = {
    path.name
    for folder in ("router", "shard", "telemetry", "loadgen", "tests")
    for path in (ROOT / folder).rglob("*")
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_is_there(page: Path) -> None:
    named = re.findall(r"`((?:\w+/)*\w+\.(?:py|cpp|h|toml))`", page.read_text(encoding="utf-8"))
    assert [
        name for name in named if name.rpartition("/")[2] not in SOURCES and not (ROOT / name).exists()
    ] == []
