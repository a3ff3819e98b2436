"""What all charts of the report are made of. Colours are CSS variables, so that they follow light
and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from loadgen.show.report.scale import Scale, short

WIDTH = 520
COLOURS = 9
CHARACTER = 9.0
"""A tick's character is at most so wide, on narrow pages too."""


def colour(number: int) -> str:
    """Of the arm with this number; they come again after COLOURS."""
    return f"var(--c{number % COLOURS})"


def text(x: float, y: float, said: str, kind: str = "tick", anchor: str = "") -> str:
    """kind is a CSS class; anchor middle or end, or the start when empty."""
    where = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{where}>{escape(said)}</text>'


def rule(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    """A straight line as SVG."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def rectangle(x: float, y: float, width: float, height: float, style: str, said: str = "") -> str:
    """style: attributes. said is shown to whoever points at it."""
    inner = f"<title>{escape(said)}</title>" if said else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.3):.1f}" '
        f'height="{max(height, 0.3):.1f}" {style}>{inner}</rect>'
    )


def x_axis(across: Scale, top: float, bottom: float, title: str) -> str:
    """Vertical grid lines, ticks below them and the title below those."""
    made = []
    for tick in across.ticks:
        x = across.at(tick)
        made.append(rule(x, top, x, bottom))
        made.append(text(x, bottom + 18, short(round(tick, 6)), anchor="middle"))
    middle = (across.start + across.end) / 2
    return "".join(made) + text(middle, bottom + 40, title, "axis", "middle")


def y_axis(up: Scale, left: float, right: float, title: str, *, percent: bool = False) -> str:
    """Horizontal grid lines, ticks and title left of them."""
    made = []
    for tick in up.ticks:
        y = up.at(tick)
        said = f"{tick:.0%}" if percent else short(round(tick, 6))
        made.append(rule(left, y, right, y) + text(left - 7, y + 4, said, anchor="end"))
    return "".join(made) + y_title(title, (up.start + up.end) / 2)


def y_title(title: str, middle: float) -> str:
    """Along the left edge, around a height."""
    return (
        f'<text class="axis" x="14" y="{middle:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle:.1f})">{escape(title)}</text>'
    )


def legend(entries: Sequence[tuple[str, int, str]]) -> str:
    """A legend of entries (name, colour, CSS class of a line)."""
    items = "".join(
        f'<li><svg width="22" height="10" aria-hidden="true"><line class="line {style}" x1="1" '
        f'x2="21" y1="5" y2="5" stroke="{colour(number)}"/></svg>{escape(name)}</li>'
        for name, number, style in entries
    )
    return f'<ul class="legend">{items}</ul>' if items else ""


def figure(title: str, drawn: str, height: float, above: str = "") -> str:
    """A chart with its caption, and a legend above it."""
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>{above}"
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{drawn}</svg></figure>"
    )
