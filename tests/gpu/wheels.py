"""`make gpu-wheels WHEELS=DIR`: wheels of what a machine with torch and transformers lacks, for `make gpu`.

By default all that Helios needs and its tests, with what these need; names given choose some of it. Versions
are those of constraints.txt, builds those for CPython 3.12 on Linux x86-64.
"""

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from tests.gpu.plan import ROOT

PYTHON = {"python_version": "3.12", "python_full_version": "3.12.3", "extra": ""}
PLATFORMS = (*(f"manylinux_2_{n}" for n in (34, 31, 28, 27, 17)), "manylinux2014", "manylinux1")
IN_PLACE = ("torch", "transformers", "accelerate")  # with all that they alone need
TESTING = ("hypothesis", "psutil", "pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist")


def main(arguments: list[str] | None = None) -> int:
    """Fetch the wheels into a folder; pip says what is not to be had."""
    parser = argparse.ArgumentParser(prog="make gpu-wheels", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="packages to fetch, with what they need [all]")
    options = parser.parse_args(arguments)
    names = closure(options.names or asked_for())
    options.folder.mkdir(parents=True, exist_ok=True)
    target = ["--python-version=3.12", "--implementation=cp", "--only-binary=:all:"]
    target += [f"--abi={abi}" for abi in ("cp312", "abi3", "none")]
    target += [f"--platform={platform}_x86_64" for platform in PLATFORMS]
    versions = ["--no-deps", f"--constraint={ROOT / 'constraints.txt'}"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", f"--dest={options.folder}"]
    return subprocess.run([*pip, *target, *versions, *sorted(names)], check=False).returncode


def asked_for() -> list[str]:
    """The requirements in pyproject.toml, without packages in place."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [*map(_name, project["dependencies"]), *TESTING]
    return [name for name in names if name not in IN_PLACE]


def closure(names: list[str]) -> set[str]:
    """The packages and their dependencies, by what is installed here, without packages in place."""
    found: set[str] = set()
    pending = [_name(name) for name in names]
    while pending:
        name = pending.pop()
        if name not in found and name not in IN_PLACE:
            found.add(name)
            pending += _needs(name)
    return found


def _needs(name: str) -> list[str]:
    try:
        requires = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    parsed = map(Requirement, requires)
    return [_name(need.name) for need in parsed if need.marker is None or need.marker.evaluate(PYTHON)]


def _name(requirement: str) -> str:
    """A package's name, as package indexes compare them."""
    return re.sub(r"[-_.]+", "-", Requirement(requirement).name).lower()


if __name__ == "__main__":
    sys.exit(main())
