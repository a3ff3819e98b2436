"""The report's tables."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import msgspec

from loadgen.results import Arm, Difference, Results


class Row(msgspec.Struct, frozen=True):
    """One metric: how it is read, written and judged."""

    title: str
    value: Callable[[Arm], float | None]
    form: Callable[[float], str]
    metric: str = ""
    """As in Difference; empty when no interval is computed for it."""
    more_is_better: bool | None = None


def percent(value: float) -> str:
    return f"{value:.1%}"


def milliseconds(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _latency(field: str, part: str) -> Callable[[Arm], float | None]:
    def read(arm: Arm) -> float | None:
        latency = getattr(arm, field)
        return float(getattr(latency, part)) if latency.count else None

    return read


_TITLES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2e_ms": "End to end"}
_PARTS = {
    "ttft_ms": ("mean", "p50", "p90", "p95", "p99"),
    "tpot_ms": ("mean", "p99"),
    "itl_ms": ("mean", "p99"),
    "e2e_ms": ("mean", "p90", "p99"),
}
ROWS = (
    Row("Hit rate", lambda arm: arm.hit_rate, percent, "hit_rate", True),
    Row("Most possible", lambda arm: arm.upper_bound, percent),
    *(
        Row(
            f"{_TITLES[field]} {part}",
            _latency(field, part),
            milliseconds,
            f"{field}.{part}",
            False,
        )
        for field, parts in _PARTS.items()
        for part in parts
    ),
    Row("Requests a second", lambda a: a.throughput.requests_per_s, plain, "", True),
    Row("Output tokens a second", lambda a: a.throughput.output_tokens_per_s, plain, "", True),
    Row(
        "Goodput, requests a second",
        lambda a: a.goodput.requests_per_s if a.goodput else None,
        plain,
        "",
        True,
    ),
    Row("Requests", lambda arm: float(arm.requests), lambda value: f"{value:,.0f}"),
    Row("Failed", lambda a: float(sum(a.errors.values())), lambda value: f"{value:,.0f}"),
    Row("Busiest replica's work over the mean", lambda a: a.balance.work_max_over_mean, plain),
    Row(
        "GPU-seconds of prefill saved",
        lambda a: a.savings.gpu_seconds if a.savings else None,
        lambda value: f"{value:,.1f}",
    ),
    Row(
        "Money saved, a million requests",
        lambda a: a.savings.money_per_million_requests if a.savings else None,
        lambda value: f"{value:,.2f}",
    ),
)


def label(results: Results, arm: Arm) -> str:
    """The arm's name, with its load in a sweep."""
    return f"{arm.name} at {arm.load:g}" if results.kind == "sweep" else arm.name


def summary(results: Results) -> str:
    """Metrics down, arms across, each with its difference to the first arm of its load."""
    heads = "".join(f"<th>{escape(label(results, arm))}</th>" for arm in results.arms)
    bases: dict[float, Arm] = {}
    for arm in results.arms:
        bases.setdefault(arm.load, arm)
    lines = []
    for row in ROWS:
        if all(row.value(arm) is None for arm in results.arms):
            continue
        cells = "".join(
            _cell(row, arm, bases[arm.load], _interval(results, row, arm, bases[arm.load]))
            for arm in results.arms
        )
        lines.append(f"<tr><th>{row.title}</th>{cells}</tr>")
    return (
        f'<div class="card scroll"><table><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _interval(results: Results, row: Row, arm: Arm, base: Arm) -> Difference | None:
    # A sweep has several arms of one name, and a difference does not say at which load.
    if not row.metric or results.kind == "sweep":
        return None
    for each in results.differences:
        if (each.metric, each.arm, each.baseline) == (row.metric, arm.name, base.name):
            return each
    return None


def _cell(row: Row, arm: Arm, base: Arm, interval: Difference | None) -> str:
    value, before = row.value(arm), row.value(base)
    if value is None:
        return "<td>-</td>"
    said = row.form(value)
    if arm is base or row.more_is_better is None or before is None:
        return f"<td>{said}</td>"
    points = row.form is percent
    change = value - before
    unsure = interval is not None and interval.low <= 0 <= interval.high
    if points:
        text = f"{change * 100:+.1f} points"
    elif before:
        text = f"{change / before:+.0%}"
    else:
        text = f"{change:+,.1f}"
    kind = ""
    if change and not unsure:
        kind = "better" if (change > 0) == row.more_is_better else "worse"
    if interval is not None:
        factor, unit = (100, "") if points else (1, " ms")
        low, high = interval.low * factor, interval.high * factor
        text += f" <span>[{low:+,.1f} to {high:+,.1f}{unit}]</span>"
    return f'<td>{said}<small class="{kind}">{text}</small></td>'


def settings(results: Results) -> str:
    """What was asked for."""
    entries = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in results.settings.items()
    )
    return f'<div class="card"><dl>{entries}</dl></div>' if entries else ""


def notes(results: Results) -> str:
    """Warnings and errors, which belong above everything they may explain."""
    said = [escape(warning) for warning in results.warnings]
    for arm in results.arms:
        for reason, count in arm.errors.items():
            said.append(f"{escape(label(results, arm))}: {count} requests failed: {escape(reason)}")
    items = "".join(f"<li>{text}</li>" for text in said)
    return f'<div class="note"><ul>{items}</ul></div>' if items else ""
