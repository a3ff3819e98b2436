"""Charts as inline SVG. Colours are CSS variables, so that they follow light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import msgspec

from loadgen.report.scale import Scale, even, logarithmic, short

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 12, 48
COLOURS = 6


class Line(msgspec.Struct, frozen=True):
    """One line of a chart; a gap where y is None."""

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 0
    style: str = ""
    """A CSS class: thin, dashed, or none; named lines without thin are in the legend."""
    marked: bool = False


class Bars(msgspec.Struct, frozen=True):
    """A group of horizontal bars."""

    name: str
    values: Sequence[tuple[str, float, str]]
    """(label, value, what is written beside it)"""
    colour: int = 0


def colour(number: int) -> str:
    return f"var(--c{number % COLOURS})"


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_title: str,
    y_title: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    y_range: tuple[float, float] | None = None,
    percent: bool = False,
) -> str:
    """Lines over a common x."""
    xs = [x for line in lines for x, y in line.points if y is not None]
    ys = [y for line in lines for _, y in line.points if y is not None]
    if not xs:
        return ""
    left, right = LEFT, WIDTH - RIGHT
    top, bottom = TOP, HEIGHT - BOTTOM
    across = logarithmic(xs, left, right) if log_x else even(0.0, max(xs), left, right)
    if log_y:
        up = logarithmic(ys, bottom, top)
    else:
        low, high = y_range or (0.0, max(ys))
        up = even(low, high, bottom, top)
    drawn = "".join(_line(line, across, up) for line in lines)
    named = [line for line in lines if line.name and "thin" not in line.style]
    return _figure(
        title,
        _grid(across, up, percent=percent) + drawn + _titles(x_title, y_title),
        _legend([(line.name, line.colour, line.style) for line in named]),
    )


def _line(line: Line, across: Scale, up: Scale) -> str:
    pieces: list[list[str]] = [[]]
    marks = []
    for x, y in line.points:
        if y is None:
            pieces.append([])
            continue
        place = f"{across.at(x):.1f},{up.at(y):.1f}"
        pieces[-1].append(place)
        if line.marked:
            cx, _, cy = place.partition(",")
            said = f"{line.name}: {short(round(x, 3))}, {short(round(y, 3))}"
            marks.append(
                f'<circle cx="{cx}" cy="{cy}" r="4" fill="{colour(line.colour)}">'
                f"<title>{escape(said)}</title></circle>"
            )
    paths = "".join(
        f'<polyline class="line {line.style}" points="{" ".join(piece)}" '
        f'stroke="{colour(line.colour)}"><title>{escape(line.name)}</title></polyline>'
        for piece in pieces
        if len(piece) > 1
    )
    return paths + "".join(marks)


def _grid(across: Scale, up: Scale, *, percent: bool) -> str:
    made = []
    for tick in across.ticks:
        x = across.at(tick)
        made.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{up.end}" y2="{up.start}"/>')
        made.append(
            f'<text class="tick" x="{x:.1f}" y="{up.start + 17:.1f}" text-anchor="middle">'
            f"{short(round(tick, 6))}</text>"
        )
    for tick in up.ticks:
        y = up.at(tick)
        made.append(
            f'<line class="grid" x1="{across.start}" x2="{across.end}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        said = f"{tick:.0%}" if percent else short(round(tick, 6))
        made.append(
            f'<text class="tick" x="{across.start - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">'
            f"{said}</text>"
        )
    return "".join(made)


def _titles(x_title: str, y_title: str) -> str:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" '
        f'text-anchor="middle">{escape(x_title)}</text>'
        f'<text class="axis" x="14" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle})">{escape(y_title)}</text>'
    )


def bar_chart(title: str, groups: Sequence[Bars], x_title: str) -> str:
    """Horizontal bars, group after group, from 0."""
    count = sum(len(group.values) for group in groups)
    most = max((value for group in groups for _, value, _ in group.values), default=0.0)
    if not count or most <= 0:
        return ""
    row, gap, above = 20, 10, 20
    left = 150
    height = (
        TOP
        + sum(len(group.values) * row + (above if group.name else 0) + gap for group in groups)
        + BOTTOM
    )
    bottom = height - BOTTOM
    across = even(0.0, most, left, WIDTH - 90, about=4)
    made = []
    for tick in across.ticks:
        x = across.at(tick)
        made.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        made.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">'
            f"{short(round(tick, 6))}</text>"
        )
    y = float(TOP)
    for group in groups:
        if group.name:
            name = escape(_cut(group.name))
            made.append(f'<text class="group" x="4" y="{y + 14:.1f}">{name}</text>')
            y += above
        for label, value, said in group.values:
            width = max(1.0, across.at(value) - left)
            made.append(
                f'<text class="tick" x="{left - 7}" y="{y + 14:.1f}" text-anchor="end">'
                f"{escape(_cut(label, 21))}</text>"
                f'<rect x="{left}" y="{y + 3:.1f}" width="{width:.1f}" height="{row - 6}" rx="2" '
                f'fill="{colour(group.colour)}"><title>{escape(f"{label}: {said}")}</title></rect>'
                f'<text class="tick" x="{left + width + 5:.1f}" y="{y + 14:.1f}">'
                f"{escape(said)}</text>"
            )
            y += row
        y += gap
    made.append(
        f'<text class="axis" x="{(left + WIDTH - 90) / 2}" y="{height - 8}" text-anchor="middle">'
        f"{escape(x_title)}</text>"
    )
    return _figure(title, "".join(made), "", height)


def _cut(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"...{text[3 - most :]}"


def _legend(entries: Sequence[tuple[str, int, str]]) -> str:
    items = "".join(
        f'<li><svg width="22" height="10" aria-hidden="true"><line class="line {style}" x1="1" '
        f'x2="21" y1="5" y2="5" stroke="{colour(number)}"/></svg>{escape(name)}</li>'
        for name, number, style in entries
    )
    return f'<ul class="legend">{items}</ul>' if items else ""


def _figure(title: str, drawn: str, legend: str, height: int = HEIGHT) -> str:
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>{legend}"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{drawn}</svg></figure>"
    )
