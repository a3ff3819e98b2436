"""Results as one HTML file that asks nobody for anything."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from loadgen.report import tables
from loadgen.report.charts import Bars, Line, bar_chart, line_chart
from loadgen.results import Arm, Results


def write_html(results: Results, path: Path) -> None:
    """Write the report. Raises OSError."""
    path.write_text(page(results), encoding="utf-8")


def page(results: Results) -> str:
    """The whole document."""
    style = files("loadgen.report").joinpath("style.css").read_text(encoding="utf-8")
    title = f"{results.workload}: {', '.join(dict.fromkeys(arm.name for arm in results.arms))}"
    said = f'<p class="said">{escape(results.conclusion)}</p>' if results.conclusion else ""
    what = f'<p class="soft">{escape(results.description)}</p>' if results.description else ""
    sections = [
        _section("Summary", _SUMMARY, tables.summary(results)),
        _section("Load and latency", _SWEEP, _charts(_sweep(results))),
        _section("Latency", _LATENCY, _charts(_distributions(results))),
        _section("Hit rate over time", _HITS, _charts(_over_time(results))),
        _section("Load spread", _SPREAD, _charts(_spread(results))),
        _section("The hits' way", _WAY, _charts(_way(results))),
        _section("Settings", "", tables.settings(results)),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{what}{said}{tables.notes(results)}{''.join(sections)}"
        "</main></body></html>\n"
    )


_SUMMARY = (
    "Latencies count from when a request was due. TTFT: time to the first token; TPOT: time per "
    "output token after it; ITL: gap between two chunks. Small print: difference to the first "
    "column, with its 95% interval where there is one; coloured unless the interval contains 0."
)
_SWEEP = "Each point is one load. Lower and further right is better."
_LATENCY = "How many requests were answered within a time. Further left is better."
_HITS = (
    "Reused share of the prompt tokens of requests that ended then. Thick: all replicas; thin: "
    "each one; dashed: the most that one endless cache for all replicas could have reused."
)
_SPREAD = "Work is prompt tokens that had to be computed plus tokens written."
_WAY = (
    "Prompt tokens that any replica held (available), that the chosen one held (chosen), that an "
    "engine could deliver of them (predicted), and that it did reuse (delivered)."
)


def _section(title: str, how: str, content: str) -> str:
    if not content:
        return ""
    explained = f'<p class="how">{escape(how)}</p>' if how else ""
    return f"<section><h2>{escape(title)}</h2>{explained}{content}</section>"


def _charts(charts: Sequence[str]) -> str:
    drawn = "".join(charts)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def _colours(results: Results) -> dict[str, int]:
    """An arm keeps its colour in all charts and over all loads."""
    names = dict.fromkeys(arm.name for arm in results.arms)
    return {name: number for number, name in enumerate(names)}


def _sweep(results: Results) -> list[str]:
    if results.kind != "sweep":
        return []
    colours = _colours(results)
    by_name: dict[str, list[Arm]] = {name: [] for name in colours}
    for arm in results.arms:
        if arm.completed:
            by_name[arm.name].append(arm)
    charts = []
    for field, title in (("ttft_ms", "TTFT p90"), ("e2e_ms", "End to end p90")):
        lines = [
            Line(
                name,
                [(arm.throughput.requests_per_s, getattr(arm, field).p90 / 1e3) for arm in arms],
                colours[name],
                marked=True,
            )
            for name, arms in by_name.items()
        ]
        charts.append(
            line_chart(f"{title} and throughput", lines, "requests/s", "seconds", log_y=True)
        )
    rates = [
        Line(name, [(arm.load, arm.hit_rate) for arm in arms], colours[name], marked=True)
        for name, arms in by_name.items()
    ]
    tokens = [
        Line(
            name,
            [(arm.load, arm.throughput.output_tokens_per_s) for arm in arms],
            colours[name],
            marked=True,
        )
        for name, arms in by_name.items()
    ]
    offered = "offered load"
    charts.append(line_chart("Output tokens a second", tokens, offered, "tokens/s"))
    charts.append(line_chart("Hit rate", rates, offered, "", y_range=(0.0, 1.0), percent=True))
    return charts


def _distributions(results: Results) -> list[str]:
    colours = _colours(results)
    charts = []
    for field, title in (("ttft_quantiles_ms", "TTFT"), ("e2e_quantiles_ms", "End to end")):
        lines = [
            Line(
                tables.label(results, arm),
                # From 1% to 99%: one outlier at either end would squeeze the rest.
                [(ms / 1e3, place / 100) for place, ms in enumerate(getattr(arm, field))][1:-1],
                colours[arm.name] if results.kind != "sweep" else number,
            )
            for number, arm in enumerate(_few(results))
            if getattr(arm, field)
        ]
        chart = line_chart(
            title,
            [line for line in lines if line.points],
            "seconds",
            "share of requests",
            log_x=True,
            y_range=(0.0, 1.0),
            percent=True,
        )
        charts.append(chart)
    return charts


def _few(results: Results) -> list[Arm]:
    """The arms worth a chart of their own: all, or those of a sweep's highest load."""
    if results.kind != "sweep":
        return results.arms
    top = max((arm.load for arm in results.arms), default=0.0)
    return [arm for arm in results.arms if arm.load == top]


def _over_time(results: Results) -> list[str]:
    colours = _colours(results)
    charts = []
    for arm in _few(results):
        if not any(value is not None for value in arm.hit_rate_over_time):
            continue
        number = colours[arm.name]
        lines = [
            Line(replica.name, _timed(arm, replica.hit_rate_over_time), number, "thin")
            for replica in arm.replicas
        ]
        lines.append(Line("all replicas", _timed(arm, arm.hit_rate_over_time), number))
        bound = [(0.0, arm.upper_bound), (arm.duration_s, arm.upper_bound)]
        lines.append(Line("most possible, over all", bound, number, "dashed"))
        charts.append(
            line_chart(
                tables.label(results, arm),
                lines,
                "seconds",
                "hit rate",
                y_range=(0.0, 1.0),
                percent=True,
            )
        )
    return charts


def _timed(arm: Arm, values: Sequence[float | None]) -> list[tuple[float, float | None]]:
    return [((place + 0.5) * arm.bucket_s, value) for place, value in enumerate(values)]


def _spread(results: Results) -> list[str]:
    colours = _colours(results)
    requests, work = [], []
    for arm in _few(results):
        if not arm.replicas:
            continue
        name, number = tables.label(results, arm), colours[arm.name]
        counts = [
            (replica.name, float(replica.requests), f"{replica.requests:,}")
            for replica in arm.replicas
        ]
        done = [
            replica.prompt_tokens - replica.cached_tokens + replica.output_tokens
            for replica in arm.replicas
        ]
        tokens = [
            (replica.name, float(each), f"{each:,}")
            for replica, each in zip(arm.replicas, done, strict=True)
        ]
        requests.append(Bars(name, counts, number))
        work.append(Bars(name, tokens, number))
    return [
        bar_chart("Requests of each replica", requests, "requests"),
        bar_chart("Work of each replica", work, "tokens"),
    ]


def _way(results: Results) -> list[str]:
    colours = _colours(results)
    charts = []
    for arm in _few(results):
        reuse = arm.reuse
        if reuse is None or not reuse.prompt:
            continue
        stages = ("prompt", "available", "chosen", "predicted", "delivered")
        values = [(stage, getattr(reuse, stage) / reuse.prompt * 100) for stage in stages]
        bars = [(stage, share, f"{share:.1f}%") for stage, share in values]
        charts.append(
            bar_chart(
                tables.label(results, arm),
                [Bars("", bars, colours[arm.name])],
                "% of the prompt tokens, warm-up included",
            )
        )
    return charts
