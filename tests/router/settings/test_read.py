"""Every setting is read by something: one that nobody reads promises what does not happen."""

import ast
import functools
from pathlib import Path

import msgspec
import pytest

from router.catalog.repository import Candidate, Figures, Floor, Limits, Loop, Repository
from router.settings.config import Config
from shard.messages import NewSequence, Sampling, ShardConfig

ROOT = Path(__file__).parents[3]
STRUCTS = (
    Config,
    ShardConfig,
    Repository,
    Candidate,
    Figures,
    Limits,
    Floor,
    Loop,
    Sampling,
    NewSequence,
)
FIELDS = [(struct, name) for struct in STRUCTS for name in struct.__struct_fields__]
SPREAD = {Config: ("api_key", "admin_key", "api_key_file", "admin_key_file")}  # read by names made of parts


@functools.cache
def reads() -> frozenset[str]:
    """Names of attributes that the source reads, of whichever object."""
    found: set[str] = set()
    for folder in ("router", "shard"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found |= {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
            }
    return frozenset(found)


@pytest.mark.parametrize(("struct", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_a_setting_is_read(struct: type[msgspec.Struct], name: str) -> None:
    assert name in reads() or name in SPREAD.get(struct, ()), f"nobody reads {struct.__name__}.{name}"


def test_one_that_is_not_read_would_be_found() -> None:
    assert "scoring_budget" not in reads()
