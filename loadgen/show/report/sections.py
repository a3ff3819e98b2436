"""From results to the charts of each section."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loadgen.results.schema import RATE, REPLICAS, Arm, ReplicaResult, Results
from loadgen.show.report.charts import Group, Line, bar_chart, line_chart
from loadgen.show.report.parts import Part, at, axis, few, names, parts
from loadgen.show.report.replicas import Panel, column_chart, heat_map

MOST_LOADS = 4
"""Of a sweep whose distributions are drawn."""
_SECONDS = "seconds"
_STAGES = ("available", "chosen", "predicted", "delivered")

_Read = Callable[[Arm], float | None]


def colours(results: Results) -> dict[str, int]:
    """An arm keeps its colour in all charts and over all loads."""
    return {name: number for number, name in enumerate(names(results))}


def sweep(results: Results) -> list[str]:
    """Latency against throughput, and the rest against the load."""
    if results.kind != "sweep" or len(parts(results)) < 2:
        return []
    offered = axis(results)
    if offered == RATE:
        offered += " asked for"
    rising = sorted(results.arms, key=lambda arm: arm.load)
    by_name = {
        name: [arm for arm in rising if arm.name == name and arm.completed]
        for name in names(results)
    }

    def chart(title: str, x: _Read, x_title: str, y: _Read, y_title: str) -> str:
        lines = [
            Line(name, _points(arms, x, y), number, marked=True)
            for number, (name, arms) in enumerate(by_name.items())
        ]
        share = y is _hit_rate
        top = (0.0, 1.0) if share else None
        log = y_title == _SECONDS
        return line_chart(title, lines, x_title, y_title, log_y=log, y_range=top, percent=share)

    done, reached = _answered, "requests/s answered"
    if axis(results) == REPLICAS:
        # The same rate for any number of them would be a vertical line.
        done, reached = _answered_each, "requests/s answered by a replica"
    return [
        chart("TTFT p90 against throughput", done, reached, _ttft, _SECONDS),
        chart("End to end p90 against throughput", done, reached, _e2e, _SECONDS),
        chart("TTFT p90", _load, offered, _ttft, _SECONDS),
        chart("End to end p90", _load, offered, _e2e, _SECONDS),
        chart("Output tokens a second", _load, offered, _tokens, "tokens/s"),
        chart("Hit rate", _load, offered, _hit_rate, "hit rate"),
    ]


def _points(arms: Sequence[Arm], x: _Read, y: _Read) -> list[tuple[float, float | None]]:
    return [(place, y(arm)) for arm in arms if (place := x(arm)) is not None]


def _load(arm: Arm) -> float | None:
    return arm.load


def _answered(arm: Arm) -> float | None:
    return arm.throughput.requests_per_s


def _answered_each(arm: Arm) -> float | None:
    return arm.throughput.requests_per_s / arm.load


def _tokens(arm: Arm) -> float | None:
    return arm.throughput.output_tokens_per_s


def _hit_rate(arm: Arm) -> float | None:
    return arm.hit_rate


def _ttft(arm: Arm) -> float | None:
    return _seconds(arm.ttft_ms.p90)


def _e2e(arm: Arm) -> float | None:
    return _seconds(arm.e2e_ms.p90)


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1e3


def distributions(results: Results, most: int = MOST_LOADS) -> list[str]:
    """Of TTFT and of the whole time, at so many loads of a sweep."""
    charts = []
    for part in few(parts(results), most):
        for field, title in (("ttft_quantiles_ms", "TTFT"), ("e2e_quantiles_ms", "End to end")):
            lines = [
                # From 1% to 99%: one outlier at either end would squeeze the rest.
                Line(arm.name, _shares(getattr(arm, field))[1:-1], colours(results)[arm.name])
                for arm in part.arms
                if getattr(arm, field)
            ]
            charts.append(
                line_chart(
                    titled(results, part, title),
                    lines,
                    "seconds",
                    "share of requests",
                    log_x=True,
                    y_range=(0.0, 1.0),
                    percent=True,
                )
            )
    return charts


def _shares(quantiles: Sequence[float]) -> list[tuple[float, float | None]]:
    return [(ms / 1e3, place / 100) for place, ms in enumerate(quantiles)]


def titled(results: Results, part: Part, title: str) -> str:
    """With the load, in a sweep."""
    return f"{title}, {at(results, part.load)}" if results.kind == "sweep" else title


def top(results: Results) -> Part | None:
    """The arms worth charts of their own: all, or those of a sweep's highest load."""
    found = parts(results)
    return found[-1] if found else None


def over_time(results: Results) -> list[str]:
    """A heat map for each arm."""
    part = top(results)
    if part is None:
        return []
    return [
        heat_map(titled(results, part, arm.name), arm, colours(results)[arm.name])
        for arm in part.arms
    ]


def spread(results: Results) -> list[str]:
    """Requests and work of every replica."""
    part = top(results)
    arms = [arm for arm in part.arms if arm.replicas] if part else []
    if part is None or not arms:
        return []
    measured: list[tuple[str, str, Callable[[ReplicaResult], float]]] = [
        ("Requests", "requests", lambda replica: replica.requests),
        ("Work", "tokens", _work),
    ]
    if not any(replica.hit_rate_over_time for arm in arms for replica in arm.replicas):
        # Counted by the engines, which tell no times: no heat map has it.
        measured.append(("Hit rate", "%", lambda replica: (replica.hit_rate or 0.0) * 100))
    number = colours(results)
    return [
        column_chart(
            titled(results, part, f"{title} of each replica"),
            [_panel(arm, unit, value, number[arm.name]) for arm in arms],
            unit,
        )
        for title, unit, value in measured
    ]


def _panel(arm: Arm, unit: str, value: Callable[[ReplicaResult], float], number: int) -> Panel:
    values = [(replica.name, value(replica)) for replica in arm.replicas]
    mean = sum(each for _, each in values) / len(values)
    if unit == "%" or not mean:
        return Panel(arm.name, values, number)
    most = max(each for _, each in values)
    return Panel(f"{arm.name}: busiest {most / mean:.2f} times the mean", values, number)


def _work(replica: ReplicaResult) -> int:
    return replica.prompt_tokens - replica.cached_tokens + replica.output_tokens


def way(results: Results) -> list[str]:
    """Where reuse gets lost, stage after stage, the arms beside each other."""
    part = top(results)
    known = [
        (arm, arm.reuse) for arm in (part.arms if part else []) if arm.reuse and arm.reuse.prompt
    ]
    if part is None or not known:
        return []
    number = colours(results)
    groups = []
    for stage in _STAGES:
        shares = [(arm, getattr(reuse, stage) / reuse.prompt * 100) for arm, reuse in known]
        bars = [(number[arm.name], share, f"{share:.1f}%") for arm, share in shares]
        groups.append(Group(stage, bars))
    chart = bar_chart(
        titled(results, part, "Prompt tokens that could be reused, and were"),
        groups,
        [(arm.name, number[arm.name]) for arm, _ in known],
        "% of all prompt tokens",
    )
    return [chart]
