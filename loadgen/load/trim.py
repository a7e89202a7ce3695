"""Trimming of warm-up and cool-down before figures are computed."""

import msgspec


class Trim(msgspec.Struct, frozen=True):
    """Trim at each end: a share of the time in which requests were started, or seconds."""

    warmup: str = "10%"
    cooldown: str = "0%"
