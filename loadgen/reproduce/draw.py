"""Charts as SVG files, for pages that take no style of their own.

White ground with a border, so that they can be read on a dark page as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import msgspec

from loadgen.show.report.scale import Scale, even, logarithmic, short

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 70, 200, 40, 54
INK, SOFT, GRID = "#1f2328", "#57606a", "#d8dee4"
FONT = "ui-sans-serif, system-ui, Helvetica, Arial, sans-serif"
COLOURS = (
    "#8c959f",
    "#0969da",
    "#8250df",
    "#bf8700",
    "#cf222e",
    "#1b7c83",
    "#116329",
    "#4ac26b",
    "#e16f24",
)
"""Grey for the first arm; strong red for the fifth, which is ours."""


class Series(msgspec.Struct, frozen=True):
    """One line over x, drawn in its place's colour."""

    name: str
    points: Sequence[tuple[float, float]]
    place: int
    strong: bool = False


def lines(title: str, series: Sequence[Series], x_title: str, y_title: str) -> str:
    """Lines over a common x; y is logarithmic."""
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points]
    across = even(0.0, max(xs), LEFT, WIDTH - RIGHT)
    up = logarithmic(ys, HEIGHT - BOTTOM, TOP)
    drawn = [_grid(across, up)]
    # Ours last, on top.
    for each in sorted(series, key=lambda each: each.strong):
        colour = COLOURS[each.place % len(COLOURS)]
        places = [f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in each.points]
        width = 3 if each.strong else 1.6
        drawn.append(
            f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" '
            f'stroke-width="{width}"/>'
        )
        for place in places:
            cx, _, cy = place.partition(",")
            drawn.append(f'<circle cx="{cx}" cy="{cy}" r="{width + 1}" fill="{colour}"/>')
    for number, each in enumerate(series):
        y = TOP + 12 + 22 * number
        colour = COLOURS[each.place % len(COLOURS)]
        drawn.append(
            f'<rect x="{WIDTH - RIGHT + 16}" y="{y - 8}" width="14" height="8" fill="{colour}"/>'
            + _text(WIDTH - RIGHT + 36, y, each.name, weight="bold" if each.strong else "")
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    drawn.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_title, SOFT, anchor="middle"))
    drawn.append(
        f'<g transform="rotate(-90 18 {middle})">'
        + _text(18, middle, y_title, SOFT, anchor="middle")
        + "</g>"
    )
    return _document(title, drawn, HEIGHT)


def _grid(across: Scale, up: Scale) -> str:
    made = []
    for tick in across.ticks:
        x = across.at(tick)
        made.append(f'<path d="M{x:.1f} {up.end}V{up.start}" stroke="{GRID}"/>')
        made.append(_text(x, up.start + 18, short(round(tick, 6)), SOFT, anchor="middle"))
    for tick in up.ticks:
        y = up.at(tick)
        made.append(f'<path d="M{across.start} {y:.1f}H{across.end}" stroke="{GRID}"/>')
        made.append(_text(across.start - 8, y + 4, short(round(tick, 6)), SOFT, anchor="end"))
    return "".join(made)


def bars(title: str, values: Sequence[tuple[str, float]], strong: str, x_title: str) -> str:
    """Horizontal bars from 0, one for each name, with the value beside it."""
    left, right, row = 170, 90, 26
    height = TOP + row * len(values) + BOTTOM
    across = even(0.0, max(value for _, value in values), left, WIDTH - right)
    drawn = []
    for tick in across.ticks:
        x = across.at(tick)
        drawn.append(f'<path d="M{x:.1f} {TOP}V{height - BOTTOM}" stroke="{GRID}"/>')
        tick_text = short(round(tick, 6))
        drawn.append(_text(x, height - BOTTOM + 18, tick_text, SOFT, anchor="middle"))
    for place, (name, value) in enumerate(values):
        y = TOP + row * place
        ours = name == strong
        wide = max(1.0, across.at(value) - left)
        drawn.append(
            _text(left - 8, y + 18, name, weight="bold" if ours else "", anchor="end")
            + f'<rect x="{left}" y="{y + 5}" width="{wide:.1f}" height="{row - 10}" '
            f'fill="{COLOURS[4] if ours else COLOURS[0]}"/>'
            + _text(left + wide + 6, y + 18, f"{value:.2f}", SOFT)
        )
    middle = (left + WIDTH - right) / 2
    drawn.append(_text(middle, height - 14, x_title, SOFT, anchor="middle"))
    return _document(title, drawn, height)


def _text(
    x: float, y: float, said: str, colour: str = INK, *, anchor: str = "", weight: str = ""
) -> str:
    extra = f' text-anchor="{anchor}"' if anchor else ""
    extra += f' font-weight="{weight}"' if weight else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}"{extra}>{escape(said)}</text>'


def _document(title: str, drawn: Sequence[str], height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'width="{WIDTH}" height="{height}" font-family="{FONT}" font-size="13">'
        f"<title>{escape(title)}</title>"
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6" fill="#fff" '
        f'stroke="{GRID}"/>' + _text(16, 26, title, weight="bold") + "".join(drawn) + "</svg>\n"
    )
