"""The measured window of a run, without warm-up and cool-down, and the rule by which it was cut."""

import msgspec

from loadgen.cli.units import seconds, share
from loadgen.client.records import Outcome, Record
from loadgen.load.run import Run
from loadgen.load.trim import Trim

MIN_REQUESTS = 20  # least number of starts inside a window


class Window(msgspec.Struct, frozen=True):
    """The measured window, in seconds since the start of the run, and the rule in words.

    Requests count if they were meant to start inside, tokens if they came inside.
    """

    start_s: float
    end_s: float
    rule: str

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    def holds(self, at_s: float) -> bool:
        return self.start_s <= at_s <= self.end_s


def measured_window(run: Run, trim: Trim) -> Window:
    """From the end of warm-up to the last start; the whole run if too little would be left.

    A closed loop's warm-up lasts at least until its first answers have ended, since before that all
    streams are in the same phase.
    """
    whole = Window(0.0, run.duration_s, "the whole run: too short to cut off warm-up")
    last_start = run.since_start(run.last_start)
    start = _extent(trim.warmup, last_start)
    if not run.is_open_loop:
        start = max(start, _first_end(run))
    window = Window(start, last_start - _extent(trim.cooldown, last_start), "")
    inside = sum(window.holds(run.since_start(record.intended)) for record in run.records)
    if window.duration_s < _mean_time_s(run) or inside < MIN_REQUESTS:
        return whole
    words = f"{window.start_s:.1f} s to {window.end_s:.1f} s: warm-up {trim.warmup}"
    words += "" if run.is_open_loop else ", at least until the first answer ended"
    words += ", until the last start"
    return Window(window.start_s, window.end_s, words)


def _first_end(run: Run) -> float:
    ends = [record.ended for record in run.records if record.ended is not None]
    return run.since_start(min(ends)) if ends else 0.0


def _mean_time_s(run: Run) -> float:
    """Mean duration of an answer; a shorter window would see only part of each stream."""
    times = [(record.e2e_ms or 0.0) / 1e3 for record in run.records if record.outcome is Outcome.OK]
    return sum(times) / len(times) if times else 0.0


def _extent(text: str, total_s: float) -> float:
    """Seconds from `10%` of the total, or from a time."""
    return share(text) * total_s if text.strip().endswith("%") else seconds(text)


def measured_records(run: Run, window: Window) -> list[Record]:
    return [record for record in run.records if window.holds(run.since_start(record.intended))]
