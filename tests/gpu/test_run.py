"""The script for GPUs runs here on tiny models: it measures, names what fails, and ends in time."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.gpu.plan import MODES, ROOT, SMALL_SHAPES, Part, plan_of
from tests.gpu.report import CUT, FAILED, PASSED, Outcome, write
from tests.gpu.run import chosen, make_venv, run
from tests.gpu.wheels import asked_for, closure


@pytest.mark.timeout(420)
def test_on_a_cpu_every_row_is_there(tmp_path: Path):
    command = [sys.executable, "-m", "tests.gpu.run", "--device", "cpu", "--small", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "5000"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    log = (tmp_path / "log.txt").read_text()
    assert ended.returncode == 0, ended.stderr + ended.stdout + log[-3000:]
    made = json.loads((tmp_path / "gpu.json").read_text())
    parts = ["packages", "equality", "swaps", "energy and swap times", "speed"]
    assert [(part["name"], part["outcome"]) for part in made["parts"]] == [(name, PASSED) for name in parts]
    assert made["passed"] and not made["failed"] and not made["cut"]
    [device] = made["devices"]
    assert device["device"] == "cpu" and device["gigabytes_per_s"] > 0
    assert {test["outcome"] for test in made["tests"]} == {"passed"}
    assert any("test_loader" in test["id"] for test in made["tests"])
    assert [swap["depth"] for swap in made["swaps"]] == [2, 4, 3]
    assert len(made["energy"]) == 1
    ways = [("full", "full"), *((mode, "modes") for mode in MODES)]
    rows = [(p["shape"], p["batch_size"], p["mode"], p["bench"]) for p in made["points"]]
    names = [shape.name for shape in SMALL_SHAPES]
    assert sorted(rows) == sorted((name, size, *way) for name in names for size in (1, 2) for way in ways)
    assert all(point["of_limit"] >= 0 and point["tokens_per_s"] > 0 for point in made["points"])
    page = (tmp_path / "gpu.md").read_text()
    for shape, size, mode, _ in rows:
        assert f"| {shape} | {size} | 16 | {mode} |" in page
    assert all(f"| {name} | {PASSED} |" in page for name in parts)


def test_a_part_that_fails_or_does_not_end_is_named_and_what_it_found_is_kept(tmp_path: Path):
    begin = "from tests.gpu.findings import note; "
    one_of_three = begin + "note('tests', count=3); note('test', id='a', outcome='{}'); raise SystemExit(1)"
    programs = {
        "good": begin + "note('point')",
        "silent": "pass",
        "bad": begin + "note('point'); raise SystemExit('it broke')",
        "tests short": one_of_three.format("passed"),
        "tests bad": one_of_three.format("failed"),
        "short": begin + "note('cut', name='x'); raise SystemExit(1)",
        "endless": begin + "note('point'); import time; time.sleep(600)",
    }
    started = time.monotonic()
    with (tmp_path / "log").open("wb") as log:

        def outcome(name: str, program: str, left_s: float = 1000.0) -> Outcome:
            part = Part(name, 10 if name == "endless" else 100, ("-c", program))
            return run(part, sys.executable, left_s, tmp_path, log.fileno())

        outcomes = [outcome(name, program) for name, program in programs.items()]
        late = outcome("late", "1 / 0", left_s=1.0)
    assert time.monotonic() - started < 300
    assert {each.name: each.outcome for each in [*outcomes, late]} == {
        "good": PASSED,
        "silent": FAILED,
        "bad": FAILED,
        "tests short": CUT,
        "tests bad": FAILED,
        "short": CUT,
        "endless": CUT,
        "late": CUT,
    }
    by_name = {each.name: each for each in outcomes}
    assert by_name["bad"].findings and "it broke" in by_name["bad"].tail
    assert by_name["endless"].findings == [{"kind": "point"}]


def test_some_parts_may_be_asked_for():
    parts = plan_of("cuda", small=False).parts
    assert [part.name for part in chosen(parts, "swaps equality")] == ["equality", "swaps"]
    assert chosen(parts, "") == list(parts)
    with pytest.raises(SystemExit, match=r"--only sped: no part begins so.*equality"):
        chosen(parts, "swaps sped")


def test_what_did_not_pass_stands_on_the_page(tmp_path: Path):
    tests = [
        {"kind": "tests", "count": 4},
        {"kind": "test", "id": "test_a.py::one", "outcome": "passed", "seconds": 1.0, "why": ""},
        {"kind": "test", "id": "test_a.py::two", "outcome": "failed", "seconds": 1.0, "why": "assert 1 == 2"},
    ]
    speed = [
        {"kind": "cut", "name": "llama3-8b, batch 256"},
        {"kind": "failed", "name": "opt-1.3b, batch 8", "why": "CUDA out of memory"},
    ]
    equality = Outcome("equality", FAILED, 3.0, 10, tests, "E  1 == 2")
    write([equality, Outcome("speed", FAILED, 3.0, 10, speed)], tmp_path, 6.0)
    page = (tmp_path / "gpu.md").read_text()
    for line in (
        "| equality | failed | 3 | 10 | 1 passed, 1 failed, 2 not run |",
        "- test_a.py::two: assert 1 == 2",
        "- llama3-8b, batch 256: not begun in time",
        "- opt-1.3b, batch 8: CUDA out of memory",
        "E  1 == 2",
    ):
        assert line in page
    assert json.loads((tmp_path / "gpu.json").read_text())["passed"] is False


@pytest.mark.parametrize("small", [False, True])
def test_parts_end_before_all_time_is_over(small: bool):
    plan = plan_of("cuda", small)
    assert sum(part.budget_s for part in plan.parts) <= 530
    words = [word for part in plan.parts for word in part.arguments if word.startswith("tests/")]
    assert words and all((ROOT / word).exists() for word in words)


def test_the_whole_plan_asks_for_every_shape_mode_and_size():
    plan = plan_of("cuda", small=False)
    assert plan.batch_sizes == (1, 8, 64, 256)
    assert {shape.model_id for shape in plan.shapes} == {
        "random:smollm2-135m",
        "random:llama3-8b",
        "random:opt-1.3b",
    }
    speeds = [part.arguments for part in plan.parts if "tests.gpu.speed" in part.arguments]
    assert [arguments[-1] for arguments in speeds] == [shape.name for shape in plan.shapes]


def wheel(folder: Path, name: str, version: str) -> None:
    """Write a wheel with a module of its name that holds its version."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", f"version = {version!r}\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def test_wheels_add_what_is_missing_and_change_nothing(tmp_path: Path):
    """Whatever this Python is, a virtual environment's too: its packages are seen, and stay as they are."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "helios_gpu_probe", "1.5")
    for name in ("msgspec", "torch", "nvidia_x"):
        wheel(wheels, name, "99.0")
    python = make_venv(wheels, tmp_path / "venv")
    program = (
        "import importlib.util as u, json, helios_gpu_probe, msgspec, torch; "
        "print(json.dumps([helios_gpu_probe.version, msgspec.__version__, torch.__version__, "
        "u.find_spec('nvidia_x') is None]))"
    )
    result = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True, timeout=100)
    import msgspec
    import torch

    assert json.loads(result.stdout) == ["1.5", msgspec.__version__, torch.__version__, True]


def test_wheels_are_of_everything_but_what_is_in_place():
    names = closure(asked_for())
    assert {"msgspec", "aiohttp", "gguf", "pytest", "pytest-asyncio", "yarl", "iniconfig"} <= names
    assert not names & {"torch", "transformers", "accelerate", "triton", "sympy"}
    assert closure(["redis"]) >= {"redis"} and "aiohttp" not in closure(["redis"])
