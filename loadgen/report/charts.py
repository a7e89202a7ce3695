"""Plots as inline SVG. Colours are classes of the page's style sheet, so that light and dark both work.

A chart carries its data along as JSON; the page's script shows the values under the pointer.
"""

from collections.abc import Sequence
from html import escape

import msgspec

from loadgen.report.scales import Scale, linear, logarithmic, short

NARROW, WIDE, HEIGHT = 420, 860, 220  # a card of one column, of two, and both
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 16, 34
BAR_LEFT, BAR_STEP = 74, 30

Points = Sequence[tuple[float, float]]


class Series(msgspec.Struct, frozen=True):
    """A line. `colour` is a class of the style sheet: c1 to c6."""

    name: str
    points: Points
    colour: str
    is_area: bool = False
    is_dashed: bool = False


class Mark(msgspec.Struct, frozen=True):
    """A moment marked by a vertical line."""

    x: float
    label: str
    detail: str


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """Axes and annotations of a chart."""

    x_label: str
    y_label: str
    is_log_x: bool = False
    marks: Sequence[Mark] = ()
    band: tuple[float, float] | None = None  # the measured window, shaded
    is_wide: bool = False

    @property
    def width(self) -> int:
        return WIDE if self.is_wide else NARROW

    @property
    def right(self) -> int:
        return self.width - RIGHT


def line_chart(series: Sequence[Series], frame: Frame) -> str:
    """A chart of lines over a common x axis; a sentence if there are no data."""
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    if not xs:
        return '<p class="empty">nothing measured</p>'
    make = logarithmic if frame.is_log_x else _tight
    x = make(xs, LEFT, frame.right)
    y = linear(ys, HEIGHT - BOTTOM, TOP)
    body = [_band(frame, x), _grid(x, y, frame)]
    body += [_line(line, x, y) for line in series]
    body += [_mark(mark, x) for mark in frame.marks]
    return _svg("line", (frame.width, HEIGHT), body, _data(series, x, frame)) + _legend(series)


def _tight(values: Sequence[float], start: float, end: float) -> Scale:
    low, high = min(values), max(values)
    return Scale(low, high if high > low else low + 1.0, start, end)


class Heat(msgspec.Struct, frozen=True):
    """Shares by row (the first at the bottom) and time bin."""

    rows: Sequence[str]
    starts: Sequence[float]
    shares: Sequence[Sequence[float]]


def heat_map(heat: Heat, frame: Frame) -> str:
    """A heat map; a cell is as dark as its share of its column."""
    starts = heat.starts
    width = starts[1] - starts[0] if len(starts) > 1 else 1.0
    x = Scale(starts[0], starts[-1] + width, LEFT, frame.right)
    height = (HEIGHT - TOP - BOTTOM) / len(heat.rows)
    body = []
    for row, (name, shares) in enumerate(zip(heat.rows, heat.shares, strict=True)):
        top = HEIGHT - BOTTOM - (row + 1) * height
        place = f'x="{LEFT - 6}" y="{top + height / 2 + 3.5:.1f}" text-anchor="end"'
        body.append(f'<text class="tick" {place}>{escape(name)}</text>')
        cells = zip(starts, shares, strict=True)
        body += [_cell(x.at(at), x.at(at + width), (top, height), share) for at, share in cells if share > 0]
    body += [_x_axis(x, frame), *(_mark(mark, x) for mark in frame.marks)]
    return _svg("heat", (frame.width, HEIGHT), body)


def _cell(left: float, right: float, extent: tuple[float, float], share: float) -> str:
    top, height = extent
    place = f'x="{left:.1f}" y="{top + 0.5:.1f}" width="{right - left:.1f}" height="{height - 1:.1f}"'
    return (
        f'<rect class="cell" {place} fill-opacity="{max(0.04, share):.2f}"><title>{share:.0%}</title></rect>'
    )


def stacked_bars(rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str]) -> str:
    """One bar per row, divided by shares that sum to one; colours go from the first name to the last."""
    colours = [f"s{1 + round(index * 5 / max(1, len(names) - 1))}" for index in range(len(names))]
    body = []
    for index, (label, shares) in enumerate(rows):
        top, at = TOP + index * BAR_STEP, float(BAR_LEFT)
        body.append(
            f'<text class="label" x="{BAR_LEFT - 8}" y="{top + 15}" text-anchor="end">{escape(label)}</text>'
        )
        for name, colour, share in zip(names, colours, shares, strict=True):
            width = share * (NARROW - RIGHT - BAR_LEFT)
            body.append(_bar_part((at, top, width), colour, f"{name}: {share:.1%}"))
            if width > 34:
                body.append(
                    f'<text class="inside" x="{at + width / 2:.1f}" y="{top + 15}">{share:.0%}</text>'
                )
            at += width
    key = _key(list(zip(names, colours, strict=True)))
    return _svg("bars", (NARROW, TOP + len(rows) * BAR_STEP), body) + key


def _bar_part(place: tuple[float, float, float], colour: str, title: str) -> str:
    x, y, width = place
    box = f'x="{x:.1f}" y="{y:g}" width="{max(0.0, width - 1):.1f}" height="22" rx="2"'
    return f'<rect class="fill {colour}" {box}><title>{escape(title)}</title></rect>'


def _svg(kind: str, size: tuple[float, float], body: Sequence[str], data: str = "") -> str:
    carried = f" data-chart='{data}'" if data else ""
    head = f'<svg class="chart {kind}" viewBox="0 0 {size[0]:g} {size[1]:g}" role="img"{carried}>'
    return head + "".join(body) + "</svg>"


def _line(line: Series, x: Scale, y: Scale) -> str:
    places = [(x.at(px), y.at(py)) for px, py in line.points]
    path = "M" + "L".join(f"{px:.1f},{py:.1f}" for px, py in places)
    drawn = f'<path class="stroke {line.colour}{" dashed" if line.is_dashed else ""}" d="{path}"/>'
    if not line.is_area:
        return drawn
    floor = y.at(y.low)
    area = f"{path}L{places[-1][0]:.1f},{floor:.1f}L{places[0][0]:.1f},{floor:.1f}Z"
    return f'<path class="area {line.colour}" d="{area}"/>{drawn}'


def _grid(x: Scale, y: Scale, frame: Frame) -> str:
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{frame.right}" y1="{y.at(t):.1f}" y2="{y.at(t):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y.at(t) + 3.5:.1f}" text-anchor="end">{short(t)}</text>'
        for t in y.ticks
    ]
    label = f'<text class="axis" x="{LEFT}" y="{TOP - 6}">{escape(frame.y_label)}</text>'
    return "".join(lines) + label + _x_axis(x, frame)


def _x_axis(x: Scale, frame: Frame) -> str:
    floor = HEIGHT - BOTTOM
    ticks = "".join(
        f'<text class="tick" x="{x.at(t):.1f}" y="{floor + 14}" text-anchor="middle">{short(t)}</text>'
        for t in x.ticks
    )
    line = f'<line class="floor" x1="{LEFT}" x2="{frame.right}" y1="{floor}" y2="{floor}"/>'
    place = f'x="{(LEFT + frame.right) / 2}" y="{HEIGHT - 4}" text-anchor="middle"'
    return f'{line}{ticks}<text class="axis" {place}>{escape(frame.x_label)}</text>'


def _band(frame: Frame, x: Scale) -> str:
    if frame.band is None:
        return ""
    low, high = x.at(frame.band[0]), x.at(frame.band[1])
    place = f'x="{low:.1f}" y="{TOP}" width="{high - low:.1f}" height="{HEIGHT - TOP - BOTTOM}"'
    return f'<rect class="band" {place}/>'


def _mark(mark: Mark, x: Scale) -> str:
    if not x.low <= mark.x <= x.high:
        return ""
    at = x.at(mark.x)
    line = f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
    flag = f'<circle class="flag" cx="{at:.1f}" cy="{TOP}" r="6.5"/>'
    text = f'<text class="flagtext" x="{at:.1f}" y="{TOP + 3}">{escape(mark.label)}</text>'
    return f"<g>{line}{flag}{text}<title>{escape(mark.detail)}</title></g>"


def _legend(series: Sequence[Series]) -> str:
    return _key([(line.name, line.colour) for line in series]) if len(series) > 1 else ""


def _key(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<span><i class="dot {colour}"></i>{escape(name)}</span>' for name, colour in entries)
    return f'<div class="legend">{items}</div>'


def _data(series: Sequence[Series], x: Scale, frame: Frame) -> str:
    """The chart's data as JSON, for the values under the pointer."""
    lines = [
        {"name": s.name, "colour": s.colour, "points": [(round(a, 4), round(b, 4)) for a, b in s.points]}
        for s in series
    ]
    scale = {"low": x.low, "high": x.high, "start": x.start, "end": x.end, "log": x.is_log}
    data = {"series": lines, "x": scale, "xLabel": frame.x_label, "yLabel": frame.y_label}
    return escape(msgspec.json.encode(data).decode(), quote=True)
