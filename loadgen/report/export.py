"""The files of `--out DIR`: figures as JSON and CSV, requests and server metrics as JSONL, the page."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadgen.client.records import Record
from loadgen.load.run import Run
from loadgen.report.page import page_of
from loadgen.report.tables import MEASURES, rounded
from loadgen.results.stats import Distribution
from loadgen.results.summary import Summary
from loadgen.results.timeline import Bin

FILES = (
    "summary.json",
    "timeline.csv",
    "latencies.csv",
    "requests.jsonl",
    "metrics.jsonl",
    "report.html",
)


def export(out: Path, summary: Summary, run: Run, page: str = "") -> list[Path]:
    """Write all files, with `page` in place of the default page; returns their paths. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    figures = rounded(msgspec.to_builtins(summary, str_keys=True))
    (out / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2))
    _write_csv(
        out / "timeline.csv", Bin.__struct_fields__, map(msgspec.structs.astuple, summary.timeline.bins)
    )
    _write_csv(
        out / "latencies.csv", ("measure", "group", *Distribution.__struct_fields__), _latencies(summary)
    )
    with (out / "requests.jsonl").open("wb") as file:
        for record in run.records:
            file.write(msgspec.json.encode(rounded(request_line(record, run))) + b"\n")
    with (out / "metrics.jsonl").open("wb") as file:
        for scrape in run.scrapes:
            line = {"at_s": run.since_start(scrape.at), **scrape.values}
            file.write(msgspec.json.encode(rounded(line)) + b"\n")
    (out / "report.html").write_text(page or page_of([summary]))
    return [out / name for name in FILES]


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([rounded(list(row)) for row in rows])


def _latencies(summary: Summary) -> Iterator[tuple[Any, ...]]:
    for group, latencies in [("all", summary.latencies), *summary.by_group.items()]:
        for field, _ in MEASURES:
            found: Distribution | None = getattr(latencies, field)
            if found is not None:
                yield (field, group, *msgspec.structs.astuple(found))


def request_line(record: Record, run: Run) -> dict[str, Any]:
    """One request as a line. Times in ms since the run began, `token_ms` since its intended start."""
    fields = {
        "ttft_ms": record.ttft_ms,
        "tpot_ms": record.tpot_ms,
        "e2e_ms": record.e2e_ms,
        "longest_gap_ms": record.longest_gap_ms,
    }
    return {
        "number": record.number,
        "group": record.group,
        "session": record.session,
        "turn": record.turn,
        "intended_ms": run.since_start(record.intended) * 1e3,
        "start_delay_ms": record.start_delay_ms,
        "sent_ms": None if record.sent is None else run.since_start(record.sent) * 1e3,
        "outcome": record.outcome,
        "status": record.status,
        "detail": record.detail,
        "finish_reason": record.finish_reason,
        "flaws": record.flaws,
        "input_tokens": record.input_tokens,
        "cached_tokens": record.cached_tokens,
        "output_tokens": record.num_tokens,
        "queue_ms": record.queue_ms,
        **fields,
        "model": record.model,
        "version": record.version,
        "segments": msgspec.to_builtins(record.segments),
        "token_ms": [(at - record.intended) * 1e3 for at in record.token_times],
        "exit_layers": record.exit_layers.tolist(),
        "confidences": [None if value != value else value for value in record.confidences],
        "text": record.text,
    }
