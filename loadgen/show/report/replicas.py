"""Charts with something for every replica, whether there are two of them or hundreds."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import msgspec

from loadgen.results.measures import NONE, percent
from loadgen.results.schema import Arm, ReplicaResult
from loadgen.show.replica_names import short_names
from loadgen.show.report.charts import Line, polyline
from loadgen.show.report.scale import even, inside
from loadgen.show.report.svg import (
    CHARACTER,
    WIDTH,
    colour,
    figure,
    legend,
    rectangle,
    text,
    x_axis,
    y_axis,
    y_title,
)

LEFT, RIGHT, TOP, BOTTOM = 92, 66, 12, 50
LINE_HEIGHT = 120
MOST_ROWS = 64
"""Replicas of a heat map; of more, so many evenly chosen ones are shown."""
_RAMP = (0.0, 0.25, 0.5, 0.75, 1.0)


class Panel(msgspec.Struct, frozen=True):
    """One arm's columns in a chart of columns."""

    title: str
    values: Sequence[tuple[str, float]]
    """Pairs of replica and value."""
    colour: int


def heat_map(title: str, arm: Arm, number: int) -> str:
    """The hit rate of all replicas as a line, and under it a row of cells for each replica, over
    the same time; empty when the engines did not tell."""
    buckets = len(arm.hit_rate_over_time)
    if all(value is None for value in arm.hit_rate_over_time):
        return ""
    left, right = float(LEFT), float(WIDTH - RIGHT)
    across = inside(buckets * arm.bucket_s, left, right)
    foot = float(TOP + LINE_HEIGHT)
    up = even(0.0, 1.0, foot, TOP, about=2)
    bound = Line(
        "most possible", [(0.0, arm.upper_bound), (across.high, arm.upper_bound)], number, "dashed"
    )
    whole = Line("all replicas", _timed(arm, arm.hit_rate_over_time), number)
    timed = [replica for replica in arm.replicas if replica.hit_rate_over_time]
    shown = _evenly(timed)
    head = foot + 14
    row = max(7.0, min(20.0, 220 / max(1, len(shown))))
    bottom = head + row * len(shown) if shown else foot
    drawn = [
        x_axis(across, TOP, bottom, "seconds"),
        y_axis(up, left, right, "hit rate", percent=True),
        polyline(bound, across, up),
        polyline(whole, across, up),
        text(right + 8, up.at(arm.hit_rate or 0.0) + 4, _share(arm.hit_rate), "group"),
    ]
    width = (right - left) / buckets
    names = short_names([replica.name for replica in shown])
    every = ceil(17 / row)
    for place, (replica, name) in enumerate(zip(shown, names, strict=True)):
        y = head + place * row
        if place % every == 0:
            drawn.append(text(left - 7, y + row / 2 + 4, _cut(name), anchor="end"))
            drawn.append(text(right + 8, y + row / 2 + 4, _share(replica.hit_rate)))
        for bucket, value in enumerate(replica.hit_rate_over_time):
            x = left + bucket * width
            drawn.append(_cell(replica, x, y, width, row, value, bucket * arm.bucket_s))
    if shown:
        drawn.append(y_title("replica", (head + bottom) / 2))
    some = len(shown) < len(timed)
    said = f"{title} ({len(shown)} of {len(timed)} replicas)" if some else title
    entries = legend([(line.name, number, line.style) for line in (whole, bound)])
    return figure(said, "".join(drawn), bottom + BOTTOM, entries)


def ramp() -> str:
    """What a heat map's colours are: a legend for all of them."""
    cells = "".join(
        f'<li><svg width="22" height="12" aria-hidden="true">'
        f"{rectangle(0.5, 0.5, 21, 11, _heat(value))}</svg>{value:.0%}</li>"
        for value in _RAMP
    )
    return f'<ul class="legend">{cells}<li>blank: no request ended</li></ul>'


def _heat(value: float) -> str:
    return f'class="heat" fill-opacity="{0.1 + 0.9 * value:.2f}"'


def _cell(
    replica: ReplicaResult,
    x: float,
    y: float,
    width: float,
    height: float,
    value: float | None,
    start: float,
) -> str:
    if value is None:
        return ""
    said = f"{replica.name}, from {start:.3g} s: {percent(value)}"
    return rectangle(x + 0.5, y + 0.5, width - 1, height - 1, _heat(value), said)


def _timed(arm: Arm, values: Sequence[float | None]) -> list[tuple[float, float | None]]:
    return [((place + 0.5) * arm.bucket_s, value) for place, value in enumerate(values)]


def _share(value: float | None) -> str:
    return NONE if value is None else percent(value)


def _cut(name: str) -> str:
    """The end tells names apart that begin alike."""
    most = int((LEFT - 22) / CHARACTER)
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _evenly(replicas: Sequence[ReplicaResult]) -> Sequence[ReplicaResult]:
    if len(replicas) <= MOST_ROWS:
        return replicas
    return [replicas[place * len(replicas) // MOST_ROWS] for place in range(MOST_ROWS)]


def column_chart(title: str, panels: Sequence[Panel], unit: str) -> str:
    """A panel of columns for each arm, a column for each replica, on one scale; the dashed line is
    the mean. Empty when all are 0."""
    most = max((value for panel in panels for _, value in panel.values), default=0.0)
    if most <= 0:
        return ""
    left, right, above, high = 70.0, float(WIDTH - 16), 26, 74
    drawn = []
    y = 4.0
    for panel in panels:
        up = even(0.0, most, y + above + high, y + above, about=2)
        drawn.append(text(left, y + 16, panel.title, "group"))
        drawn.append(y_axis(up, left, right, unit))
        step = (right - left) / len(panel.values)
        gap = 0.2 * step if step > 3 else 0.0
        for place, (name, value) in enumerate(panel.values):
            top = up.at(value)
            x = left + place * step + gap / 2
            style = f'fill="{colour(panel.colour)}"'
            said = f"{name}: {value:,.0f} {unit}"
            drawn.append(rectangle(x, top, step - gap, up.start - top, style, said))
        mean = up.at(sum(value for _, value in panel.values) / len(panel.values))
        drawn.append(
            f'<line class="mean" x1="{left}" x2="{right}" y1="{mean:.1f}" y2="{mean:.1f}"/>'
        )
        y += above + high + 10
    longest = max(panels, key=lambda panel: len(panel.values)).values
    drawn.append(_names(short_names([name for name, _ in longest]), left, right, y + 8))
    drawn.append(text((left + right) / 2, y + 30, "replica", "axis", "middle"))
    return figure(title, "".join(drawn), y + 40)


def _names(names: Sequence[str], left: float, right: float, y: float) -> str:
    """As many names as there is room for."""
    step = (right - left) / len(names)
    room = max(len(name) for name in names) * CHARACTER + 6
    every = max(1, ceil(room / step))
    return "".join(
        text(left + (place + 0.5) * step, y, name, anchor="middle")
        for place, name in enumerate(names)
        if place % every == 0
    )
