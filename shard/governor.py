"""Whether leaving early pays, found out by trying: on for a while, off for a while, the faster one stays.

Pure: told what steps made and took, it says how the next one is to run. One answer per size of batch, since
what pays alone may cost in company.
"""

import msgspec

WINDOW_STEPS = 16  # of each trial
HOLD_STEPS = 600  # before the next trial: at most one step in forty is spent on the slower way
WARMUP_STEPS = 2  # after a change, not counted: pending tokens are caught up with
TRIAL_GAIN = 1.02  # exits must be so much faster than full depth


class Trial(msgspec.Struct):
    """The state of one size of batch."""

    exits_on: bool = True
    steps_left: int = WARMUP_STEPS + WINDOW_STEPS
    holding: bool = False
    num_tokens: int = 0
    ms: float = 0.0
    rate_on: float = 0.0  # tokens per millisecond with exits
    rate_off: float = 0.0


class Governor:
    """Decides from step to step; `enabled=False` always leaves early, whatever it costs."""

    def __init__(self, enabled: bool = True):
        self._enabled = enabled
        self._trials: dict[int, Trial] = {}

    def wants_exits(self, num_rows: int) -> bool:
        """How the next step with so many decoding rows is to run."""
        return not self._enabled or self._trial(num_rows).exits_on

    def note(self, num_rows: int, num_tokens: int, ms: float) -> None:
        """A step that only decoded: rows in it, tokens it made, time it took."""
        trial = self._trial(num_rows)
        trial.steps_left -= 1
        if not trial.holding and trial.steps_left < WINDOW_STEPS:
            trial.num_tokens += num_tokens
            trial.ms += ms
        if trial.steps_left <= 0:
            self._next(trial)

    def _next(self, trial: Trial) -> None:
        if trial.holding:  # try the way not in use, then compare
            trial.holding, trial.exits_on = False, not trial.exits_on
        else:
            rate = trial.num_tokens / trial.ms if trial.ms > 0 else 0.0
            if trial.exits_on:
                trial.rate_on = rate
            else:
                trial.rate_off = rate
            if trial.rate_off == 0.0:
                trial.exits_on = False
            else:
                trial.exits_on = trial.rate_on > TRIAL_GAIN * trial.rate_off
                trial.holding = True
        trial.num_tokens, trial.ms = 0, 0.0
        trial.steps_left = HOLD_STEPS if trial.holding else WARMUP_STEPS + WINDOW_STEPS

    def _trial(self, num_rows: int) -> Trial:
        return self._trials.setdefault(num_rows.bit_length(), Trial())
