"""Tests whether early exit pays: alternates trials with and without exits, then keeps the faster.

Pure: takes the tokens and times of steps, and decides how the next step runs. Decides per batch size, since
exits may pay in small batches only.
"""

import statistics

import msgspec

WINDOW_STEPS = 6  # length of a trial window
NUM_WINDOWS = 5  # windows of each variant, alternating: noise hits both, medians drop outliers
HOLD_STEPS = 1500  # steps until the next trials, so that few are spent on the slower variant
WARMUP_STEPS = 2  # not counted after each change: pending tokens are caught up
TRIAL_GAIN = 1.05  # required speed-up: less may be noise


class Trial(msgspec.Struct):
    """The state for one batch size."""

    exits_on: bool = True
    num_steps: int = 0  # since the last change
    counts: bool = False
    holds: bool = False
    num_tokens: int = 0
    ms: float = 0.0
    rates_on: list[float] = []  # tokens per millisecond with exits, by window
    rates_off: list[float] = []


class ExitFallback:
    """Decides for each step whether to use exits; `enabled=False` always does."""

    def __init__(self, enabled: bool = True):
        self._enabled = enabled
        self._trials: dict[int, Trial] = {}

    def wants_exits(self, num_rows: int) -> bool:
        """True if the next step, with `num_rows` decoding rows, is to use exits."""
        return not self._enabled or self._trial(num_rows).exits_on

    def note(self, num_rows: int, num_tokens: int, ms: float, num_waiting: int = 0) -> None:
        """Note a pure decode step: its rows, tokens, milliseconds, and rows waiting after it.

        A window begins and ends when no row waits: time spent on a waiting row has made no token yet.
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
        """End a window or a hold: next the other variant, or the better one for long."""
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
