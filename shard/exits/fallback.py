"""Whether leaving early pays, found out by trying: on for a while, off for a while, the faster one stays.

Pure: told what steps made and took, it says how the next one is to run. One answer per size of batch, since
what pays alone may cost in company.
"""

import statistics

import msgspec

WINDOW_STEPS = 6  # of one trial of one way
NUM_WINDOWS = 5  # of each way, in turns: a disturbance hits both, and medians forget it
HOLD_STEPS = 1500  # before the next trials: few steps are spent on the slower way
WARMUP_STEPS = 2  # after each change, not counted: pending tokens are caught up with
TRIAL_GAIN = 1.05  # exits must be so much faster than full depth: less may be chance, and is little


class Trial(msgspec.Struct):
    """The state of one size of batch."""

    exits_on: bool = True
    num_steps: int = 0  # since the last change
    counts: bool = False
    holds: bool = False
    num_tokens: int = 0
    ms: float = 0.0
    rates_on: list[float] = []  # tokens per millisecond with exits, by window
    rates_off: list[float] = []


class ExitFallback:
    """Decides from step to step; `enabled=False` always leaves early, whatever it costs."""

    def __init__(self, enabled: bool = True):
        self._enabled = enabled
        self._trials: dict[int, Trial] = {}

    def wants_exits(self, num_rows: int) -> bool:
        """How the next step with so many decoding rows is to run."""
        return not self._enabled or self._trial(num_rows).exits_on

    def note(self, num_rows: int, num_tokens: int, ms: float, num_waiting: int = 0) -> None:
        """A step that only decoded: rows in it, tokens it made, time it took, rows that wait after it.

        A window begins and ends where nobody waits: what was spent on a row that does is not a token yet.
        """
        trial = self._trial(num_rows)
        trial.num_steps += 1
        if trial.counts:
            trial.num_tokens += num_tokens
            trial.ms += ms
        if num_waiting:
            return
        trial.counts |= trial.num_steps >= WARMUP_STEPS
        if trial.num_steps >= (HOLD_STEPS if trial.holds else WARMUP_STEPS + WINDOW_STEPS):
            self._turn(trial)

    def _turn(self, trial: Trial) -> None:
        """The end of a window, or of a hold: the other way next, or the better one for long."""
        if trial.holds:
            trial.holds, trial.exits_on, trial.rates_on, trial.rates_off = False, True, [], []
        else:
            rates = trial.rates_on if trial.exits_on else trial.rates_off
            rates.append(trial.num_tokens / max(trial.ms, 1e-6))
            trial.exits_on = not trial.exits_on
            if len(trial.rates_off) == NUM_WINDOWS:
                on, off = statistics.median(trial.rates_on), statistics.median(trial.rates_off)
                trial.holds, trial.exits_on = True, on > TRIAL_GAIN * off
        trial.num_steps, trial.counts, trial.num_tokens, trial.ms = 0, False, 0, 0.0

    def _trial(self, num_rows: int) -> Trial:
        return self._trials.setdefault(num_rows.bit_length(), Trial())
