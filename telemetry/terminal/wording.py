"""Numbers, times and names as a terminal shows them. Pure."""

import math
import time

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400


def clean(text: object) -> str:
    """One line without control characters, which a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def duration(seconds: float) -> str:
    """Such as 0.4 s, 12 s, 3 min, 2.5 h, 4 d."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    return f"{seconds / _HOUR_S:.1f} h" if seconds < _DAY_S else f"{seconds / _DAY_S:.0f} d"


def milliseconds(ms: float | None) -> str:
    """Such as 0.42, 7.3, 120; in seconds from ten thousand on."""
    if ms is None:
        return "-"
    if ms >= 10_000:
        return f"{ms / 1000:.0f} s"
    return rounded(ms)


def rounded(number: float | None) -> str:
    """Two or three significant digits, none of an integral part are dropped; `-` for None."""
    if number is None or not math.isfinite(number):
        return "-"
    return (
        f"{number:.2f}"
        if 0 < abs(number) < 1
        else f"{number:.1f}"
        if 0 < abs(number) < 10
        else f"{number:.0f}"
    )


def count(number: float) -> str:
    """Such as 1,204."""
    return f"{number:,.0f}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def clock(unix_s: float) -> str:
    """Local time of day; before today with the date."""
    then, now = time.localtime(unix_s), time.localtime()
    return time.strftime("%H:%M:%S" if then[:3] == now[:3] else "%d %b %H:%M", then)


def choice(chosen: dict[str, object]) -> str:
    """What a decision chose, to stand behind its kind: such as `chat at 20 layers`, `shard 3`, `0.5`."""
    parts: list[str] = []
    for name, value in chosen.items():
        if name == "candidate":
            depth = chosen.get("depth")
            parts.append(f"{value} at {depth} layers" if depth else f"{value}")
        elif name == "prompts" and isinstance(value, dict):
            parts += [f"{to} for {prompts}" for prompts, to in value.items()]
        elif name == "threshold":
            parts.append("each exit's own" if value is None else f"{value}")
        elif name in ("shard", "request"):
            parts.append(f"{name} {value}")
    return clean(", ".join(parts))
