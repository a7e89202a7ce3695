"""Writes findings as one JSON file and one page of Markdown. Imports the standard library alone."""

import json
from pathlib import Path
from typing import Any, NamedTuple

Finding = dict[str, Any]
PASSED, FAILED, CUT = "passed", "failed", "cut"
_MAX_FAILURES = 30
_POINT_HEAD = ("shape", "batch", "context", "mode", "tokens/s", "step ms", "of limit", "speed-up", "bound")


class Outcome(NamedTuple):
    """The outcome of a part."""

    name: str
    outcome: str
    seconds: float
    budget_s: int
    findings: list[Finding]
    tail: str = ""  # end of a failed part's output


def of_kind(outcomes: list[Outcome], *kinds: str) -> list[Finding]:
    """Findings of all parts."""
    return [finding for outcome in outcomes for finding in outcome.findings if finding["kind"] in kinds]


def write(outcomes: list[Outcome], folder: Path, took_s: float) -> None:
    """Write gpu.json and gpu.md, again after every part."""
    whole = {
        "passed": all(outcome.outcome == PASSED for outcome in outcomes),
        "seconds": round(took_s, 1),
        "parts": [part._asdict() | {"findings": len(part.findings)} for part in outcomes],
        **{
            name: _bare(of_kind(outcomes, kind))
            for name, kind in (
                *(("devices", "device"), ("energy", "energy"), ("swaps", "swap"), ("points", "point")),
                *(("tests", "test"), ("failed", "failed"), ("cut", "cut")),
            )
        },
    }
    _replace(folder / "gpu.json", json.dumps(whole, indent=1) + "\n")
    _replace(folder / "gpu.md", markdown(outcomes, took_s))


def markdown(outcomes: list[Outcome], took_s: float) -> str:
    """The report as Markdown: device, tests, speed."""
    return "\n".join(
        [
            *_device(of_kind(outcomes, "device")),
            f"Took {took_s:.0f} s.",
            "",
            *_table(
                ("part", "outcome", "seconds", "of at most", "tests"), [_part(part) for part in outcomes]
            ),
            *_sentences(outcomes),
            *_table(
                *(
                    (
                        "shape",
                        "batch",
                        "context",
                        "mode",
                        "tokens/s",
                        "step ms",
                        "of limit",
                        "speed-up",
                        "bound",
                    ),
                ),
                [_point(point) for point in of_kind(outcomes, "point")],
            ),
            "Of limit: tokens per second over what memory alone would allow at full depth, where a step",
            "reads all weights, keys and values, as fast as a copy does. In the modes, exits are replayed.",
            "",
            *_failures(outcomes),
        ]
    )


def _device(found: list[Finding]) -> list[str]:
    if not found:
        return ["# A device that did not say what it is", ""]
    device = found[0]
    capability = f"compute capability {device['capability']}, " if device["capability"] else ""
    versions = f"torch {device['torch']}, transformers {device['transformers']}, Python {device['python']}"
    return [f"# {device['name']}", "", f"{capability}{device['gigabytes_per_s']} GB/s, {versions}.", ""]


def num_not_run(found: list[Finding]) -> int:
    """Number of collected tests of a part without a result."""
    wanted = max((finding["count"] for finding in found if finding["kind"] == "tests"), default=0)
    return max(0, int(wanted) - len({finding["id"] for finding in found if finding["kind"] == "test"}))


def _part(part: Outcome) -> tuple[str, ...]:
    tests = [finding for finding in part.findings if finding["kind"] == "test"]
    counts = {what: sum(test["outcome"] == what for test in tests) for what in (PASSED, FAILED, "skipped")}
    counts["not run"] = num_not_run(part.findings)
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return part.name, part.outcome, f"{part.seconds:.0f}", str(part.budget_s), said


def _sentences(outcomes: list[Outcome]) -> list[str]:
    lines = [
        f"Energy by {energy['source']}: {energy['watts']} W, {energy['joules_per_token']:.4f} J a token."
        if energy["source"]
        else "Energy: nothing here tells it."
        for energy in of_kind(outcomes, "energy")
    ]
    lines += [
        f"A change to {swap['depth']} layers: {swap['prepare_ms']} ms beside the steps, "
        f"{swap['gap_ms']} ms between two."
        for swap in of_kind(outcomes, "swap")
    ]
    return [*lines, ""] if lines else []


def _point(point: Finding) -> tuple[str, ...]:
    return (
        point["shape"],
        str(point["batch_size"]),
        str(point["context"]),
        point["mode"],
        f"{point['tokens_per_s']:.0f}",
        f"{point['step_ms']:.2f}",
        f"{point['of_limit']:.0%}",
        f"{point['speedup']:.2f}" if "speedup" in point else "",
        f"{point['bound']:.2f}" if point.get("bound") else "",
    )


def _failures(outcomes: list[Outcome]) -> list[str]:
    lines = [f"- {each['name']}: {each['why']}" for each in of_kind(outcomes, "failed")]
    lines += [f"- {each['name']}: not begun in time" for each in of_kind(outcomes, "cut")]
    lines += [
        f"- {test['id']}: {test['why']}" for test in of_kind(outcomes, "test") if test["outcome"] == "failed"
    ]
    more = len(lines) - _MAX_FAILURES
    lines = [*lines[:_MAX_FAILURES], *([f"- and {more} more, in gpu.json"] if more > 0 else [])]
    for part in outcomes:
        if part.tail:
            lines += ["", f"The last lines of {part.name}:", "", "```", part.tail, "```"]
    return ["## What did not pass", "", *lines, ""] if lines else []


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines] + [""]


def _bare(found: list[Finding]) -> list[Finding]:
    return [{name: value for name, value in finding.items() if name != "kind"} for finding in found]


def _replace(path: Path, text: str) -> None:
    """Replace a file atomically."""
    path.with_suffix(".partial").write_text(text, encoding="utf-8")
    path.with_suffix(".partial").replace(path)
