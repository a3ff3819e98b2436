"""The report's tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

import msgspec

from loadgen.results.measures import Measure, failures, known, milliseconds, percent
from loadgen.results.schema import Arm, Difference, Results
from loadgen.show.report.parts import Part, at, axis, parts

MOST_ACROSS = 5
"""Arms beside each other; more are rows."""


def summary(results: Results) -> str:
    """All metrics of all arms."""
    found = parts(results)
    if not found:
        return ""
    if results.kind != "sweep" and len(results.arms) <= MOST_ACROSS:
        return _across(found[0])
    return down(results)


def _across(part: Part) -> str:
    """Metrics down, arms across, each with its difference to the first arm."""
    heads = "".join(f"<th>{escape(arm.name)}</th>" for arm in part.arms)
    lines = []
    for measure in known(part.arms):
        cells = "".join(_cell(measure, arm, part) for arm in part.arms)
        lines.append(f"<tr><th>{escape(measure.title)}</th>{cells}</tr>")
    return _table(f"<tr><th></th>{heads}</tr>", [lines])


def _cell(measure: Measure, arm: Arm, part: Part) -> str:
    value, before = measure.value(arm), measure.value(part.arms[0])
    said = measure.said(arm)
    if value is None or before is None or arm is part.arms[0] or measure.more_is_better is None:
        return f"<td>{said}</td>"
    difference = part.difference(arm, measure.metric)
    text = _change(measure, value - before, before)
    if difference is not None:
        low, high = (measure.signed(edge) for edge in (difference.low, difference.high))
        text += f" <span>[{low} to {high}]</span>"
    return f'<td>{said}<small class="{_judged(measure, difference)}">{text}</small></td>'


def _change(measure: Measure, change: float, before: float) -> str:
    if measure.form is percent or not before:
        return (
            f"{measure.signed(change)} points"
            if measure.form is percent
            else measure.signed(change)
        )
    share = f"{change / before:+.0%}"
    return "±0%" if share in ("+0%", "-0%") else share


def _judged(measure: Measure, difference: Difference | None) -> str:
    """Only an interval says that something differs."""
    better = measure.better(difference)
    return "" if better is None else "better" if better else "worse"


def down(results: Results) -> str:
    """An arm in each row, those of one load together, with the metrics that fit beside each
    other."""
    chosen = [measure for measure in known(results.arms) if measure.brief]
    sweep = results.kind == "sweep"
    heads = "".join(f"<th>{escape(measure.brief)}</th>" for measure in chosen)
    first = f"<th>{escape(axis(results))}</th>" if sweep else ""
    groups = []
    for part in parts(results):
        lines = []
        for arm in part.arms:
            load = ""
            if sweep and arm is part.arms[0]:
                load = f'<th rowspan="{len(part.arms)}">{part.load:g}</th>'
            cells = "".join(_plain_cell(measure, arm, part) for measure in chosen)
            lines.append(f'<tr>{load}<th class="arm">{escape(arm.name)}</th>{cells}</tr>')
        groups.append(lines)
    return _table(f'<tr>{first}<th class="arm"></th>{heads}</tr>', groups, "down")


def _plain_cell(measure: Measure, arm: Arm, part: Part) -> str:
    kind = ""
    if arm is not part.arms[0] and measure.more_is_better is not None:
        kind = _judged(measure, part.difference(arm, measure.metric))
    return (
        f'<td class="{kind}">{measure.said(arm)}</td>' if kind else f"<td>{measure.said(arm)}</td>"
    )


def matrix(
    families: Sequence[Results], names: Sequence[str], value: Callable[[Arm], float | None]
) -> str:
    """One time in milliseconds of each arm in every case, the least of each case in bold."""
    heads = "".join(f"<th>{_breakable(name)}</th>" for name in names)
    groups = []
    for family in families:
        lines = []
        for part in parts(family):
            by_name = {arm.name: value(arm) for arm in part.arms}
            least = min((each for each in by_name.values() if each is not None), default=None)
            cells = "".join(_least_cell(by_name.get(name), least) for name in names)
            case = f"{family.workload}, {at(family, part.load)}"
            lines.append(f"<tr><th>{escape(case)}</th>{cells}</tr>")
        groups.append(lines)
    return _table(f"<tr><th></th>{heads}</tr>", groups, "down")


def _breakable(name: str) -> str:
    """A name that may go on in the next line after an underscore."""
    return escape(name).replace("_", "_<wbr>")


def against(results: Results) -> str:
    """Every difference with its interval, a row each; empty when there is none."""
    by_metric = {measure.metric: measure for measure in known(results.arms) if measure.metric}
    lines = []
    for each in results.differences:
        measure = by_metric.get(each.metric)
        if measure is None:
            continue
        change = "" if each.relative is None else f"{each.relative:+.1%}"
        interval = f"{measure.signed(each.low)} to {measure.signed(each.high)}"
        names = f"{escape(each.arm)} against {escape(each.baseline)}"
        lines.append(
            f"<tr><th>{escape(at(results, each.load))}</th>"
            f'<th class="left">{escape(measure.title)}</th><th class="left">{names}</th>'
            f'<td class="{_judged(measure, each)}">{measure.signed(each.value)}</td>'
            f"<td>{change}</td><td>{interval}</td></tr>"
        )
    head = (
        '<tr><th></th><th class="left"></th><th class="left"></th><th>Difference</th>'
        "<th>Relative</th><th>95% interval</th></tr>"
    )
    return _table(head, [lines], "down") if lines else ""


def _least_cell(value: float | None, least: float | None) -> str:
    if value is None:
        return "<td>-</td>"
    said = milliseconds(value)
    # What reads the same as the least is the least.
    alike = least is not None and said == milliseconds(least)
    return f"<td><strong>{said}</strong></td>" if alike else f"<td>{said}</td>"


def _table(head: str, groups: Sequence[Sequence[str]], kind: str = "") -> str:
    bodies = "".join(f"<tbody>{''.join(lines)}</tbody>" for lines in groups)
    table = f'<table class="{kind}"><thead>{head}</thead>{bodies}</table>'
    return f'<div class="card scroll">{table}</div>'


def settings(results: Results) -> str:
    """What was asked for."""
    return _listed(results.settings)


def made(results: Results) -> str:
    """Version, date, command line, machine, engine and model."""
    told = msgspec.structs.asdict(results.made) if results.made else {}
    return _listed({name: value for name, value in told.items() if value})


def _listed(entries: Mapping[str, str]) -> str:
    said = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in entries.items()
    )
    return f'<div class="card"><dl>{said}</dl></div>' if said else ""


def notes(results: Results) -> str:
    """Warnings and errors, which belong above everything they may explain."""
    items = "".join(f"<li>{escape(text)}</li>" for text in [*results.warnings, *failures(results)])
    return f'<div class="note"><ul>{items}</ul></div>' if items else ""
