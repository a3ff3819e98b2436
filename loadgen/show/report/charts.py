"""Line charts and grouped bars as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import msgspec

from loadgen.results.measures import percent as as_percent
from loadgen.show.report.scale import Scale, even, logarithmic, short
from loadgen.show.report.svg import WIDTH, colour, figure, legend, rectangle, text, x_axis, y_axis

HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 70, 16, 12, 50


class Line(msgspec.Struct, frozen=True):
    """One line of a chart; a gap where y is None."""

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 0
    style: str = ""
    """A CSS class: dashed, or none."""
    marked: bool = False


class Group(msgspec.Struct, frozen=True):
    """Bars that stand together under one label."""

    name: str
    bars: Sequence[tuple[int, float, str]]
    """(colour, value, what is written beside it)"""


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
    """Lines over a common x; empty when there is no point."""
    xs = [x for line in lines for x, y in line.points if y is not None]
    ys = [y for line in lines for _, y in line.points if y is not None]
    if not xs:
        return ""
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    across = logarithmic(xs, left, right) if log_x else even(0.0, max(xs), left, right)
    if log_y:
        up = logarithmic(ys, bottom, top)
    else:
        low, high = y_range or (0.0, max(ys))
        up = even(low, high, bottom, top)
    drawn = [x_axis(across, top, bottom, x_title)]
    drawn.append(y_axis(up, left, right, y_title, percent=percent))
    drawn += [polyline(line, across, up, percent=percent) for line in lines]
    named = [(line.name, line.colour, line.style) for line in lines if line.name]
    return figure(title, "".join(drawn), HEIGHT, legend(named))


def polyline(line: Line, across: Scale, up: Scale, *, percent: bool = False) -> str:
    """A point without neighbours is a dot, since a line of one point cannot be seen."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in line.points:
        if y is None:
            pieces.append([])
        else:
            pieces[-1].append((x, y))
    made = []
    for piece in pieces:
        if len(piece) > 1:
            places = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in piece)
            made.append(
                f'<polyline class="line {line.style}" points="{places}" '
                f'stroke="{colour(line.colour)}"><title>{escape(line.name)}</title></polyline>'
            )
        if line.marked or len(piece) == 1:
            made += [_dot(line, x, y, across, up, percent=percent) for x, y in piece]
    return "".join(made)


def _dot(line: Line, x: float, y: float, across: Scale, up: Scale, *, percent: bool) -> str:
    height = as_percent(y) if percent else short(round(y, 3))
    said = f"{line.name}: {short(round(x, 3))}, {height}"
    return (
        f'<circle cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="4" '
        f'fill="{colour(line.colour)}"><title>{escape(said)}</title></circle>'
    )


def bar_chart(
    title: str, groups: Sequence[Group], names: Sequence[tuple[str, int]], x_title: str
) -> str:
    """Horizontal bars from 0, group after group; names: what each colour is."""
    most = max((value for group in groups for _, value, _ in group.bars), default=0.0)
    if most <= 0:
        return ""
    row, gap, left, right = 18, 12, 112, WIDTH - 66
    rows = sum(len(group.bars) for group in groups)
    bottom = TOP + rows * row + gap * (len(groups) - 1)
    across = even(0.0, most, left, right, about=4)
    drawn = [x_axis(across, TOP, bottom, x_title)]
    y = float(TOP)
    for group in groups:
        middle = y + len(group.bars) * row / 2
        drawn.append(text(left - 10, middle + 4, group.name, "group", "end"))
        for number, value, said in group.bars:
            width = across.at(value) - left
            style = f'rx="2" fill="{colour(number)}"'
            drawn.append(rectangle(left, y + 2, width, row - 4, style, f"{group.name}: {said}"))
            drawn.append(text(left + width + 6, y + 14, said))
            y += row
        y += gap
    entries = [(name, number, "") for name, number in names]
    return figure(title, "".join(drawn), bottom + BOTTOM, legend(entries))
