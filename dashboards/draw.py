"""Pictures of the dashboards for the README: charts drawn from the same queries, not Grafana's.

python -m dashboards.draw docs/img        needs prometheus, and matplotlib from the dev extra
"""

from __future__ import annotations

import math
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib
import uvloop
from matplotlib.dates import DateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dashboards.__main__ import BOARDS
from dashboards.panels import Board, Panel
from dashboards.stage import Stage, stage

SCRAPES = 60
LABEL = (
    "Drawn from the dashboard's own queries; not a picture of Grafana. "
    "Gateway, simulated replicas and clients are one process here."
)
COLUMNS = 24
"""Of Grafana's grid."""
LEGEND_ROW = 0.14
"""Height of a row of the legend, as a share of the lines' height."""

Series = list[tuple[str, list[datetime], list[float]]]


async def gather(on: Stage, panel: Panel) -> Series:
    """A panel's lines, named as Grafana would name them."""
    found: Series = []
    for query in panel.queries:
        for line in await on.lines(query.expr):
            labels = line["metric"]
            name = _named(query.legend, labels)
            times = [datetime.fromtimestamp(at) for at, _ in line["values"]]
            found.append((name, times, [float(value) for _, value in line["values"]]))
    return found


def _named(legend: str, labels: dict[str, str]) -> str:
    """A legend with the labels it asks for."""
    for label, value in labels.items():
        legend = legend.replace("{{" + label + "}}", value)
    return legend


def text_of(value: float, unit: str) -> str:
    """A number with its unit."""
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{value:.0%}"
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB" if value >= 1e6 else f"{value / 1e3:,.0f} kB"
    if unit == "s":
        return f"{value * 1e3:,.3g} ms" if value < 1 else f"{value:.2g} s"
    plain = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{plain}/s" if unit == "reqps" else plain


def draw(board: Board, data: dict[str, Series], path: Path) -> None:
    """One board as one picture."""
    rows: list[list[tuple[int, Panel]]] = []
    for row in board.rows:
        place = 0
        line: list[tuple[int, Panel]] = []
        for panel in (each for each in row.panels if not each.needs):
            if place + panel.width > COLUMNS:
                rows.append(line)
                place, line = 0, []
            line.append((place, panel))
            place += panel.width
        if line:
            rows.append(line)
    heights = [1.0 if line[0][1].number else 2.6 for line in rows]
    # Text stays text: a fifth of the size.
    matplotlib.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(16, sum(heights) * 0.95 + 0.8), facecolor="#f4f5f5")
    grid = figure.add_gridspec(
        len(rows), COLUMNS, height_ratios=heights, hspace=0.55, wspace=2.2,
        left=0.035, right=0.99, top=1 - 0.75 / (sum(heights) * 0.95 + 0.8), bottom=0.03,
    )  # fmt: skip
    figure.suptitle(board.title, x=0.035, y=0.995, ha="left", va="top", fontsize=15, weight="bold")
    figure.text(0.99, 0.993, LABEL, ha="right", va="top", fontsize=9, color="#666")
    for number, line in enumerate(rows):
        for place, panel in line:
            axes = figure.add_subplot(grid[number, place : place + panel.width])
            (_number if panel.number else _lines)(axes, panel, data[panel.title])
    figure.savefig(path)


def _number(axes: Any, panel: Panel, series: Series) -> None:
    value = series[0][2][-1] if series else math.nan
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.text(0.5, 0.45, text_of(value, panel.unit), ha="center", va="center", fontsize=20,
              color="#1f60c4", transform=axes.transAxes)  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])


def _lines(axes: Any, panel: Panel, series: Series) -> None:
    axes.set_title(panel.title, fontsize=10, loc="left")
    if panel.stacked and series:
        # A line that began later is nothing before.
        times = sorted({at for _, each, _ in series for at in each})
        whole = []
        for _, each, values in series:
            by_time = dict(zip(each, values, strict=True))
            whole.append([0.0 if math.isnan(v := by_time.get(at, 0.0)) else v for at in times])
        axes.stackplot(times, whole, labels=[name for name, *_ in series], alpha=0.75)
    else:
        for name, times, values in series:
            axes.plot(times, values, label=name, linewidth=1.6)
    axes.set_ylim(0, panel.most)
    if len(series) > 1:
        # Room above the lines, a row of names for two of them.
        axes.legend(fontsize=7, loc="upper left", ncols=2, framealpha=0.6)
        most = axes.get_ylim()[1]
        axes.set_ylim(0, most * (1 + LEGEND_ROW * math.ceil(len(series) / 2)))
    axes.yaxis.set_major_formatter(lambda value, _: text_of(value, panel.unit))
    clock: Any = DateFormatter  # it has no types
    axes.xaxis.set_major_formatter(clock("%H:%M:%S"))
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


async def main(folder: Path) -> None:
    """Run the stage and draw both boards."""
    async with stage(SCRAPES, quickest=1.0) as on:
        for name, board in BOARDS.items():
            data = {panel.title: await gather(on, panel) for panel in board.panels}
            path = folder / f"dashboard-{name.removesuffix('.json')}.svg"
            draw(board, data, path)
            print(path)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/img")
    target.mkdir(parents=True, exist_ok=True)
    uvloop.run(main(target))
