"""Results as Markdown, to be pasted into a pull request."""

from __future__ import annotations

from pathlib import Path

from loadgen.results.measures import Measure, known, percent
from loadgen.results.schema import Arm, Difference, Results
from loadgen.show.report.parts import Part, at, parts

_ARMS = 6
"""Beside each other; more are rows."""


def write_markdown(results: Results, path: Path) -> None:
    """Raises OSError."""
    path.write_text(markdown(results), encoding="utf-8")


def markdown(results: Results) -> str:
    """A heading, what was found in a sentence, tables, and how it was made."""
    said = [f"### {_cell(results.kind)}: {_cell(results.workload)}"]
    said += [results.conclusion] if results.conclusion else []
    said += [results.description] if results.description else []
    for part in parts(results):
        if results.kind == "sweep":
            said.append(f"**{_cell(at(results, part.load))}**")
        said.append(_table(part))
    if any(arm.steps for arm in results.arms) and results.kind != "sweep":
        said.append(_steps(results.arms))
    said += [f"> **Warning:** {_cell(each)}" for each in results.warnings]
    said.append(_made(results))
    return "\n\n".join(said) + "\n"


def _table(part: Part) -> str:
    arms = part.arms[:_ARMS]
    lines = ["| | " + " | ".join(_cell(arm.name) for arm in arms) + " |"]
    lines.append("|---|" + "---:|" * len(arms))
    for measure in known(arms):
        cells = [_measured(measure, arm, part) for arm in arms]
        lines.append(f"| {_cell(measure.title)} | " + " | ".join(cells) + " |")
    if len(part.arms) > _ARMS:
        lines.append(f"\n{len(part.arms) - _ARMS} more arms are in the JSON file.")
    return "\n".join(lines)


def _measured(measure: Measure, arm: Arm, part: Part) -> str:
    said = measure.said(arm)
    found = part.difference(arm, measure.metric) if arm is not part.arms[0] else None
    if found is None:
        return said
    change = _interval(measure, found)
    better = measure.better(found)
    mark = "" if better is None else " **better**" if better else " **worse**"
    return f"{said} ({change}{mark})"


def _interval(measure: Measure, found: Difference) -> str:
    low, high = measure.signed(found.low), measure.signed(found.high)
    if found.relative is None or measure.form is percent:
        return f"{measure.signed(found.value)}, 95%: {low} to {high}"
    return f"{found.relative:+.0%}, 95%: {low} to {high}"


def _steps(arms: list[Arm]) -> str:
    """Hit rate by the place in a session."""
    with_steps = [arm for arm in arms if arm.steps][:_ARMS]
    longest = max(with_steps, key=lambda arm: len(arm.steps))
    lines = [
        "| step of a session | possible | "
        + " | ".join(_cell(arm.name) for arm in with_steps)
        + " |",
        "|---|---:|" + "---:|" * len(with_steps),
    ]
    for step in longest.steps:
        rates = [
            next((each.hit_rate for each in arm.steps if each.first == step.first), None)
            for arm in with_steps
        ]
        name = f"{step.first}" if step.first == step.last else f"{step.first} to {step.last}"
        cells = ["-" if rate is None else percent(rate) for rate in rates]
        lines.append(f"| {name} | {percent(step.upper_bound)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _made(results: Results) -> str:
    made = results.made
    if made is None:
        return "Not known how it was made."
    rows = {
        "Warmroute": made.version,
        "date": made.date,
        "command": f"`{made.command}`",
        "machine": made.machine,
        "engine": made.engine,
        "model": made.model,
    }
    told = "\n".join(f"- {name}: {value}" for name, value in rows.items() if value)
    return f"<details><summary>How it was made</summary>\n\n{told}\n\n</details>"


def _cell(text: str) -> str:
    """Text that ends no cell."""
    return text.replace("|", "\\|").replace("\n", " ")
