"""From results to the charts of each section."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loadgen.results.measures import percent, ratio
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
        return line_chart(title, lines, x_title, y_title, log_y=y_title == _SECONDS)

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
        chart("Output tokens a second against TTFT p90", _ttft, "TTFT p90, s", _tokens, "tokens/s"),
        *_hits_and_goodput(results, rising, by_name, offered),
    ]


def _hits_and_goodput(
    results: Results, rising: Sequence[Arm], by_name: dict[str, list[Arm]], offered: str
) -> list[str]:
    """Against the load: the hit rate beside the most possible, and goodput where there were
    objectives."""
    hits = [
        Line(name, _points(arms, _load, _hit_rate), number, marked=True)
        for number, (name, arms) in enumerate(by_name.items())
    ]
    first = by_name[names(results)[0]]
    hits.append(Line("most possible", _points(first, _load, _possible), len(hits), "dashed"))
    drawn = [line_chart("Hit rate", hits, offered, "hit rate", y_range=(0.0, 1.0), percent=True)]
    if any(arm.goodput for arm in rising):
        good = [
            Line(name, _points(arms, _load, _good), number, marked=True)
            for number, (name, arms) in enumerate(by_name.items())
        ]
        told = next(arm.goodput for arm in rising if arm.goodput).objectives_ms
        within = ", ".join(f"{name} within {ms:g} ms" for name, ms in told.items())
        drawn.append(line_chart(f"Goodput: {within}", good, offered, "requests/s"))
    return drawn


def _good(arm: Arm) -> float | None:
    return arm.goodput.requests_per_s if arm.goodput else None


def _possible(arm: Arm) -> float | None:
    return arm.upper_bound


def goodput(results: Results) -> list[str]:
    """How many requests a second were answered within a time."""
    part = top(results)
    if part is None:
        return []
    lines = []
    for arm in part.arms:
        rate = arm.throughput.requests_per_s
        within = [(x, y and y * rate) for x, y in _shares(arm.ttft_quantiles_ms)[1:-1]]
        if within:
            lines.append(Line(arm.name, within, colours(results)[arm.name]))
    if not lines:
        return []
    title = titled(results, part, "Goodput against the TTFT objective")
    return [line_chart(title, lines, "seconds", "requests/s", log_x=True)]


def by_step(results: Results) -> list[str]:
    """The hit rate by the place in a session."""
    part = top(results)
    arms = [arm for arm in part.arms if len(arm.steps) > 1] if part else []
    if part is None or not arms:
        return []
    lines = [
        Line(
            arm.name,
            [(float(step.first), step.hit_rate) for step in arm.steps],
            colours(results)[arm.name],
            marked=True,
        )
        for arm in arms
    ]
    longest = max(arms, key=lambda arm: len(arm.steps))
    bound = [(float(step.first), step.upper_bound) for step in longest.steps]
    lines.append(Line("most possible", bound, len(names(results)), "dashed"))
    title = titled(results, part, "Hit rate by step")
    return [
        line_chart(
            title,
            lines,
            "step of a session",
            "hit rate",
            log_x=True,
            y_range=(0.0, 1.0),
            percent=True,
        )
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
    measured: list[tuple[str, str, Callable[[ReplicaResult], float], _Read]] = [
        ("Requests", "requests", lambda replica: replica.requests, _busiest("requests")),
        ("Work", "tokens", _work, _busiest("work")),
    ]
    if not any(replica.hit_rate_over_time for arm in arms for replica in arm.replicas):
        # Counted by the engines, which tell no times: no heat map has it.
        measured.append(("Hit rate", "%", _percentage, _no_busiest))
    number = colours(results)
    return [
        column_chart(
            titled(results, part, f"{title} of each replica"),
            [_panel(arm, value, busiest(arm), number[arm.name]) for arm in arms],
            unit,
        )
        for title, unit, value, busiest in measured
    ]


def _busiest(what: str) -> _Read:
    """As the table has it: of repeats the mean, in each of which another may be the busiest."""

    def read(arm: Arm) -> float | None:
        found: float | None = getattr(arm.balance, f"{what}_max_over_mean", None)
        return found

    return read


def _no_busiest(_: Arm) -> None:
    """Of shares there is no sum to be the mean of."""


def _panel(
    arm: Arm, value: Callable[[ReplicaResult], float], busiest: float | None, number: int
) -> Panel:
    values = [(replica.name, value(replica)) for replica in arm.replicas]
    said = f": busiest {ratio(busiest)} times the mean" if busiest else ""
    return Panel(arm.name + said, values, number)


def _percentage(replica: ReplicaResult) -> float:
    return (replica.hit_rate or 0.0) * 100


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
        bars = [(number[arm.name], share, percent(share / 100)) for arm, share in shares]
        groups.append(Group(stage, bars))
    chart = bar_chart(
        titled(results, part, "Prompt tokens that could be reused, and were"),
        groups,
        [(arm.name, number[arm.name]) for arm, _ in known],
        "% of all prompt tokens",
    )
    return [chart]
