"""Tests use public names only: no private name is imported or patched. Ruff's SLF covers attributes."""

import ast
from collections.abc import Iterator

import pytest

from tests.running import ROOT

PACKAGES = ("router", "shard", "telemetry", "loadgen", "helios", "tests")
PATCHES = ("setattr", "delattr", "getattr")


def private_names(source: str) -> Iterator[str]:
    """Private names of ours that a test module imports, patches or looks up by a string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            yield from (name.name for name in node.names if _is_private(name.name))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in PATCHES:
            yield from _patched(node.args)


def _patched(arguments: list[ast.expr]) -> Iterator[str]:
    texts = [at.value for at in arguments[:2] if isinstance(at, ast.Constant) and isinstance(at.value, str)]
    if not texts or ast.unparse(arguments[0]).startswith("torch."):
        return
    name = texts[0]
    if _is_private(name.rpartition(".")[2]):
        yield name


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from shard.precision import usable_cpu, _of_cpu", ["_of_cpu"]),
        ("monkeypatch.setattr(building, '_compile', None)", ["_compile"]),
        ("monkeypatch.setattr('shard.models.weights._check', None)", ["shard.models.weights._check"]),
        ("getattr(runner, '_table')", ["_table"]),
        ("monkeypatch.setattr(torch.ops.mkldnn, '_is_supported', None)", []),
        ("from importlib.metadata import _private\nmonkeypatch.setattr(Call, '__call__', None)", []),
    ],
)
def test_private_names_are_found(source: str, found: list[str]) -> None:
    assert list(private_names(source)) == found


def test_tests_use_public_names() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name in private_names(path.read_text(encoding="utf-8"))
    ]
    assert found == []
