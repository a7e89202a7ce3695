"""`helios bench helios`: runs both parts of the experiment and reports."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from loadgen.load.live import choose_view
from loadgen.load.measure import Screen
from loadgen.paper.agreement import Quality, quality_of
from loadgen.paper.experiment import Experiment, Part
from loadgen.paper.options import HeliosOptions, size_of
from loadgen.paper.outcome import outcomes_of
from loadgen.paper.plot import plot
from loadgen.paper.subject import Subject, real_weights, replayed_exits
from loadgen.paper.table import Report, line_of, report_of, show
from loadgen.report.tables import compact_json, rounded

PLOT, FIGURES = "helios.png", "helios.json"


async def bench(options: HeliosOptions, console: Console) -> int:
    """Measure and report; returns 1 if an answer was lost. Raises `Unusable`, `BadQuantity`, OSError."""
    screen = Screen(choose_view(options.quiet), "helios")
    with tempfile.TemporaryDirectory(prefix="helios-bench-") as folder:
        subjects = _subjects(options, Path(folder))
        try:
            reports = [await _measured(options, subject, screen, Path(folder)) for subject in subjects]
        finally:
            screen.view.close()
    written = _write(Path(options.out), reports)
    if not options.quiet:
        show(reports, console)
        console.print(f"Written to {options.out}: {written}", style="dim", soft_wrap=True, markup=False)
    print(compact_json(line_of(reports)), flush=True)
    outcomes = [outcome for report in reports for outcome in report.outcomes]
    return 1 if any(system.lost for outcome in outcomes for system in outcome.systems.values()) else 0


def _write(out: Path, reports: Sequence[Report]) -> str:
    """Write the report files; returns a sentence that names them."""
    out.mkdir(parents=True, exist_ok=True)
    figures = msgspec.json.encode(rounded(line_of(reports)))
    (out / FIGURES).write_bytes(msgspec.json.format(figures, indent=2))
    try:
        plot(out / PLOT, reports)
    except ModuleNotFoundError as error:
        return f"{FIGURES}, and no plot for want of {error.name}: pip install 'helios-serve[plots]'"
    return f"{PLOT}, {FIGURES}"


def _subjects(options: HeliosOptions, folder: Path) -> list[Subject]:
    size, found = size_of(options), []
    if options.parts in ("all", "weights"):
        found.append(real_weights(options, size, folder))
    if options.parts in ("all", "replay"):
        found.append(replayed_exits(size, folder))
    return found


async def _measured(options: HeliosOptions, subject: Subject, screen: Screen, folder: Path) -> Report:
    part = await Experiment(options, size_of(options), screen).run(subject)
    quality = {} if subject.is_replay else await _quality(part, screen, folder)
    return report_of(part, outcomes_of(part), quality)


async def _quality(part: Part, screen: Screen, folder: Path) -> dict[str, Quality]:
    """Quality of each system's answers under the first load, over all rounds."""
    found = {}
    for system in part.systems:
        screen.title = f"{part.subject.name}: reading answers of {system.name} again"
        runs = part.runs_of(system.name, part.loads[0])
        records = [record for run, _ in runs for record in run.records]
        found[system.name] = await quality_of(records, part.subject.model, folder / "answers.jsonl")
    return found
