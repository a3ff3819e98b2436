"""Results as one HTML file that asks nobody for anything."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from pathlib import Path

from loadgen.results.measures import remarks
from loadgen.results.schema import Results
from loadgen.show.report import sections, tables
from loadgen.show.report.cases import case_sections
from loadgen.show.report.layout import charts, section
from loadgen.show.report.parts import at, few, names, parts
from loadgen.show.report.replicas import ramp

MOST_NAMES = 5
"""Of arms in the title."""


def write_html(results: Results, path: Path) -> None:
    """Write the report. Raises OSError."""
    path.write_text(page(results), encoding="utf-8")


def page(results: Results) -> str:
    """The whole document."""
    style = files("loadgen.show.report").joinpath("style.css").read_text(encoding="utf-8")
    title = _title(results)
    said = f'<p class="said">{escape(results.conclusion)}</p>' if results.conclusion else ""
    what = f'<p class="soft">{escape(results.description)}</p>' if results.description else ""
    made = case_sections(results) if results.kind == "report" else _sections(results)
    made.append(section("Settings", "", tables.settings(results)))
    made.append(section("How it was made", "", tables.made(results)))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{what}{said}{tables.notes(results)}{''.join(made)}"
        "</main></body></html>\n"
    )


def _title(results: Results) -> str:
    if results.kind == "report":
        return "Ways of routing compared"
    arms = names(results)
    said = ", ".join(arms) if len(arms) <= MOST_NAMES else f"{len(arms)} ways of routing"
    return f"{results.workload}: {said}" if arms else results.workload


_SUMMARY = (
    "Latencies count from when a request was due. TTFT: time to the first token; TPOT: time per "
    "output token after it; ITL: gap between two chunks."
)
_DIFFERENCES = (
    "Small print: difference to the first arm, with its 95% interval where one was computed; green "
    "is better, red is worse, and only what such an interval says is coloured."
)
_COLOURED = (
    "Green is better and red is worse than the first arm of the load; only what a 95% interval "
    "says is coloured."
)
_SWEEP = "Each point is one load. In the first two charts, lower and further right is better."
_LATENCY = "How many requests were answered within a time, up to 99%. Further left is better."
_HITS = (
    "Reused share of the prompt tokens of the requests that ended then: of all replicas as a line, "
    "and of each one as a row of cells, with its share over the whole run at the right. Dashed: "
    "the most that one endless cache for all replicas could have reused in the whole run."
)
_SPREAD = "Dashed: the mean. Work is prompt tokens that had to be computed plus tokens written."
_STEPS = (
    "Reused share of the prompt tokens by the place of a request in its session: an agent's first "
    "step can only reuse what others left, later ones its own history. Dashed: the most that one "
    "endless cache could have reused."
)
_GOODPUT = (
    "Requests a second whose first token came within a time. Higher, and further left, is better."
)
_REPEATS = " Repeated runs lie on top of each other."
_WAY = (
    "Prompt tokens that any replica held (available), that the chosen one held (chosen), that an "
    "engine could deliver of them (predicted), and that it did reuse (delivered); of runs that "
    "were not simulated, warm-up included."
)


def _sections(results: Results) -> list[str]:
    repeated = _REPEATS if any(arm.repeats > 1 for arm in results.arms) else ""
    last = _last(results)
    hits = charts(sections.over_time(results))
    return [
        section("Summary", _summary(results), tables.summary(results)),
        section("Load and latency", _SWEEP, charts(sections.sweep(results))),
        section("Latency", _LATENCY + _which(results), charts(sections.distributions(results))),
        section("Goodput", _GOODPUT + last, charts(sections.goodput(results))),
        section("Hit rate over time", _HITS + repeated + last, hits and ramp() + hits),
        section("Load spread", _SPREAD + last, charts(sections.spread(results))),
        section("Reuse by step", _STEPS + last, charts(sections.by_step(results))),
        section("The reuse funnel", _WAY + last, charts(sections.way(results))),
    ]


def _summary(results: Results) -> str:
    coloured = _DIFFERENCES
    if results.kind == "sweep" or len(results.arms) > tables.MOST_ACROSS:
        coloured = _COLOURED
    said = [_SUMMARY, coloured if len(names(results)) > 1 else "", *remarks(results)]
    return " ".join(filter(None, said))


def _which(results: Results) -> str:
    """Which loads have a distribution."""
    found = parts(results)
    shown = few(found, sections.MOST_LOADS)
    if len(shown) == len(found):
        return ""
    return f" Of {len(found)} loads, {len(shown)} are drawn; the JSON file has all."


def _last(results: Results) -> str:
    found = parts(results)
    return f" Drawn for the highest load, {at(results, found[-1].load)}." if len(found) > 1 else ""
