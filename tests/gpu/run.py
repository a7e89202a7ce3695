"""`make gpu`: runs all checks that need a GPU within a time limit; writes a JSON file and a table.

Equality of every family and mode on the device, changes of model, energy, then speed beside the limit that
memory sets. Each part is a process with a budget; one that fails or runs out of time is named, and the next
begins. Begun with a bare Python that has torch and transformers; other packages come from a folder of wheels,
without a network.
"""

import argparse
import json
import os
import re
import signal
import site
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from tests.gpu.plan import DEADLINE_S, NEEDED, ROOT, Part, plan_of
from tests.gpu.report import CUT, FAILED, PASSED, Finding, Outcome, num_not_run, write

GRACE_S = 5.0  # for a part that was told to end
TAIL_BYTES = 1500
PREPARING_S = 60
_KEPT = re.compile(r"torch|transformers|triton|nvidia-.*|cuda-.*")  # never installed: they are in place


class Ended(BaseException):
    """The run is being ended; findings are written first."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when everything passed."""
    options = _options(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _end)
    outcomes: list[Outcome] = []
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="helios-gpu-") as scratch,
        (options.out / "log.txt").open("wb") as log,
    ):
        try:
            python, prepared = prepare(options.wheels, Path(scratch))
            outcomes.append(prepared)
            for part in chosen(plan_of(options.device, options.small).parts, options.only):
                _say(outcomes[-1])
                write(outcomes, options.out, time.monotonic() - started)
                left_s = started + options.seconds - time.monotonic()
                outcomes.append(run(part, python, left_s, Path(scratch), log.fileno()))
            _say(outcomes[-1])
        except (KeyboardInterrupt, Ended):
            outcomes.append(Outcome("the rest", CUT, 0.0, 0, [], "It was ended from outside."))
        finally:
            write(outcomes, options.out, time.monotonic() - started)
    print((options.out / "gpu.md").read_text(encoding="utf-8"))
    return 0 if all(outcome.outcome == PASSED for outcome in outcomes) else 1


def chosen(parts: tuple[Part, ...], only: str) -> list[Part]:
    """The parts whose names begin with one of the words in `only`; all, without any.

    Raises `SystemExit` for a word that begins no name.
    """
    words = only.split()
    for word in words:
        if not any(part.name.startswith(word) for part in parts):
            names = ", ".join(part.name for part in parts)
            raise SystemExit(f"--only {word}: no part begins so. There are: {names}.")
    return [part for part in parts if not words or part.name.startswith(tuple(words))]


def prepare(wheels: Path | None, scratch: Path) -> tuple[str, Outcome]:
    """A Python with all packages, and the outcome of making it; without wheels, the current Python."""
    started = time.monotonic()
    try:
        python = sys.executable if wheels is None else make_venv(wheels, scratch / "venv")
        finding = f"import importlib.util as u; print(*(n for n in {NEEDED!r} if u.find_spec(n) is None))"
        missing = _ask(python, finding).stdout.split()
        why = f"not installed: {', '.join(missing)}" if missing else ""
    except (OSError, subprocess.SubprocessError) as error:
        python, why = sys.executable, str(getattr(error, "stderr", None) or error)[-TAIL_BYTES:]
    findings: list[Finding] = [{"kind": "failed", "name": "packages", "why": why}] if why else []
    took_s = time.monotonic() - started
    return python, Outcome("packages", FAILED if why else PASSED, took_s, PREPARING_S, findings)


def make_venv(wheels: Path, folder: Path) -> str:
    """Make a virtual environment with this Python's packages, and wheels of missing ones.

    This Python may itself be in one, whose packages --system-site-packages does not reach: a path file does.
    What is installed there is not installed again, whatever its version.
    """
    _run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(folder)])
    python = str(folder / "bin" / "python")
    own = _ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    seen = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    lines = [f"import site; site.addsitedir({path!r})\n" for path in seen]  # with the path files there
    Path(own, "of_the_system.pth").write_text("".join(lines), encoding="utf-8")
    listing = "import importlib.metadata as m; print(*(d.metadata['Name'] for d in m.distributions()))"
    installed = {_normal(name) for name in _ask(python, listing).stdout.split()}
    by_name = {_normal(wheel.name.split("-")[0]): wheel for wheel in sorted(wheels.glob("*.whl"))}
    wanted = [str(w) for name, w in by_name.items() if name not in installed and not _KEPT.fullmatch(name)]
    if wanted:
        quiet = ("--quiet", "--disable-pip-version-check", "--no-warn-script-location", "--no-compile")
        offline = ("--no-index", "--no-deps", "--find-links", str(wheels))
        _run([sys.executable, "-m", "pip", "--python", python, "install", *quiet, *offline, *wanted])
    return python


def run(part: Part, python: str, left_s: float, scratch: Path, log: int) -> Outcome:
    """Run one part, within its budget and the remaining time."""
    if left_s < GRACE_S:
        return Outcome(part.name, CUT, 0.0, part.budget_s, [], "There was no time left to begin it.")
    findings = scratch / f"{_normal(part.name)}.jsonl"
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"FINDINGS": str(findings), "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    if "pytest" in part.arguments:
        environment.setdefault("OMP_NUM_THREADS", "2")  # of each of several workers
    os.write(log, f"\n=== {part.name}: {' '.join(part.arguments)}\n".encode())
    begins_at, started = os.lseek(log, 0, os.SEEK_CUR), time.monotonic()
    process = subprocess.Popen(
        [python, *part.arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    status: int | None = None
    try:
        status = process.wait(min(part.budget_s, left_s - GRACE_S))
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            _stop(process)
    took_s = time.monotonic() - started
    found = _read(findings)
    outcome = _outcome(status, found)
    tail = "" if outcome == PASSED else _tail(log, begins_at)
    return Outcome(part.name, outcome, took_s, part.budget_s, found, tail)


def _outcome(status: int | None, found: list[Finding]) -> str:
    """The outcome of a part; `cut` if it only ran out of time."""
    if status == 0 and found:
        return PASSED
    has_failed = any(finding["kind"] == "failed" or finding.get("outcome") == "failed" for finding in found)
    is_short = num_not_run(found) > 0 or any(finding["kind"] == "cut" for finding in found)
    if status is None or (is_short and not has_failed):
        return CUT
    return FAILED


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a part and its children, by SIGTERM, then SIGKILL."""
    for blow, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        try:
            os.killpg(process.pid, blow)
            process.wait(patience_s)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _read(path: Path) -> list[Finding]:
    """Read findings; the last line may be incomplete."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _tail(log: int, begins_at: int) -> str:
    """The end of a part's output."""
    with open(f"/proc/self/fd/{log}", "rb") as file:
        file.seek(max(begins_at, os.fstat(log).st_size - TAIL_BYTES))
        return file.read().decode(errors="replace").strip()


def _ask(python: str, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", program], check=True, capture_output=True, text=True, timeout=PREPARING_S
    )


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=PREPARING_S)


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _say(outcome: Outcome) -> None:
    print(f"{outcome.name}: {outcome.outcome}, {outcome.seconds:.0f} s", file=sys.stderr, flush=True)


def _end(_number: int, _frame: FrameType | None) -> None:
    raise Ended


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add(
        "--out", type=Path, default="gpu-report", help="folder for gpu.json, gpu.md and log.txt [%(default)s]"
    )
    add(
        "--wheels",
        type=_folder,
        help="folder of wheels of what this Python lacks [this Python has everything]",
    )
    add("--device", default="cuda", help="[%(default)s]")
    add("--seconds", type=float, default=DEADLINE_S, help="of all parts together [%(default)s]")
    add("--only", default="", metavar="WORDS", help="parts whose names begin so, as 'swaps speed' [all]")
    add("--small", action="store_true", help="on tiny models: does the script itself work?")
    return parser.parse_args(arguments)


def _folder(text: str) -> Path | None:
    if not text:
        return None
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder: make it with `make gpu-wheels WHEELS={text}`")
    return Path(text).absolute()


if __name__ == "__main__":
    sys.exit(main())
