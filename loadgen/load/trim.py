"""How much of a run is cut off at its ends before anything is measured."""

import msgspec


class Trim(msgspec.Struct, frozen=True):
    """How much to cut at each end: a share of the time in which requests were started, or seconds."""

    warmup: str = "10%"
    cooldown: str = "0%"
