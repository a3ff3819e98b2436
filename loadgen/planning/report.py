"""A plan, and what it says: on the terminal, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadgen.made import Made
from loadgen.planning.fleet import Trial
from loadgen.planning.objective import Objective
from loadgen.planning.search import Breaking
from loadgen.show.plain import say

DAY = 24


class Cost(msgspec.Struct, frozen=True):
    """Of a fleet, in GPUs and, with a price, in money."""

    gpus: int
    per_day: float | None
    per_million_requests: float | None


class Choice(msgspec.Struct, frozen=True):
    """The smallest fleet of one kind."""

    trial: Trial
    cost: Cost


class Checked(msgspec.Struct, frozen=True):
    """The planned fleet at a small scale: in virtual time, and really run."""

    replicas: int
    share: float
    """Of the sessions."""
    simulated: Trial
    live: Trial
    behind: bool
    """The machine could not keep up, so the live times are too long."""


class PlanFound(msgspec.Struct):
    """Everything that the plan command found."""

    workload: str
    objectives: list[Objective]
    choices: list[Choice]
    """Cheapest first."""
    without: list[str]
    """Kinds of fleets of which none holds, in words."""
    around: list[Choice]
    """The best one with fewer and with more replicas."""
    breaking: Breaking | None
    warnings: list[str]
    checked: Checked | None = None
    description: str = ""
    made: Made | None = None
    settings: dict[str, str] = {}

    @property
    def best(self) -> Choice | None:
        """The cheapest."""
        return self.choices[0] if self.choices else None


def conclusion(plan: PlanFound) -> str:
    """What to do, in a few sentences."""
    best = plan.best
    wanted = ", ".join(f"{each.name} <= {seconds(each.most)}" for each in plan.objectives)
    if best is None:
        return f"No fleet that was looked at holds {wanted}."
    said = (
        f"{best.trial.fleet.named()} ({_gpus(best.cost.gpus)}) is the cheapest that holds {wanted}"
    )
    if best.cost.per_day is not None:
        said += f", for {best.cost.per_day:,.2f} a day"
    said += "."
    worse = [each for each in plan.around if each.trial.fleet.replicas < best.trial.fleet.replicas]
    if worse:
        said += f" One replica less breaks {', '.join(worse[-1].trial.broken)}."
    better = [each for each in plan.around if each.trial.fleet.replicas > best.trial.fleet.replicas]
    if better:
        said += f" The next one buys {_bought(best.trial, better[0].trial)}."
    if plan.breaking is not None:
        said += f" {_broken(plan.breaking)}"
    return said


def _bought(now: Trial, then: Trial) -> str:
    """What more replicas change, as far as it is more than noise."""
    parts = []
    for before, after in zip(now.measured, then.measured, strict=True):
        certain = after.high < before.low
        sign = "" if certain else " (within the noise)"
        parts.append(f"{before.name} {seconds(before.value)} to {seconds(after.value)}{sign}")
    return ", ".join(parts)


def _broken(found: Breaking) -> str:
    if found.breaks is None:
        return f"It holds {found.holds:.3g} times the load, the most that was tried."
    names = ", ".join(found.breaks.broken)
    return f"It holds {found.holds:.3g} times the load and breaks {names} at {found.at:.3g} times."


def seconds(value: float) -> str:
    """A time for people."""
    if value == float("inf"):
        return "never"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _gpus(count: int) -> str:
    return f"{count} GPU{'s'[: count != 1]}"


def table_rows(plan: PlanFound, choices: Sequence[Choice]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows."""
    money = any(each.cost.per_day is not None for each in choices)
    heads = ["fleet", "GPUs", *(["a day"] if money else [])]
    heads += [f"{each.name}, most {seconds(each.most)}" for each in plan.objectives]
    heads += ["hit rate", "holds"]
    rows = []
    for choice in choices:
        trial = choice.trial
        row = [trial.fleet.named(), str(choice.cost.gpus)]
        row += [f"{choice.cost.per_day:,.2f}"] if money and choice.cost.per_day is not None else []
        row += [
            f"{seconds(each.value)} [{seconds(each.low)} to {seconds(each.high)}]"
            for each in trial.measured
        ]
        hit = "-" if trial.hit_rate is None else f"{trial.hit_rate:.1%} of {trial.upper_bound:.1%}"
        row += [hit, "yes" if trial.holds else "no"]
        rows.append(row)
    return heads, rows


def show(plan: PlanFound, console: Console) -> None:
    """On the terminal."""
    if plan.description:
        say(console, plan.description)
    titles = (
        ("Fleets that hold, cheapest first", plan.choices),
        ("Fewer and more replicas", plan.around),
    )
    for title, choices in titles:
        if choices:
            table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
            heads, rows = table_rows(plan, choices)
            for place, head in enumerate(heads):
                table.add_column(Text(head), justify="left" if not place else "right")
            for row in rows:
                table.add_row(*map(Text, row))
            console.print(table)
    for each in plan.without:
        say(console, each, "dim")
    if plan.checked is not None:
        say(console, checked_said(plan.checked))
    for warning in plan.warnings:
        say(console, f"warning: {warning}", "yellow")
    say(console, conclusion(plan), "bold")


def checked_said(checked: Checked) -> str:
    """What the live run was beside its prediction."""
    parts = [
        f"{one.name} {seconds(two.value)} live, {seconds(one.value)} in virtual time"
        for one, two in zip(checked.simulated.measured, checked.live.measured, strict=True)
    ]
    hits = ""
    if checked.live.hit_rate is not None and checked.simulated.hit_rate is not None:
        hits = (
            f"; hit rate {checked.live.hit_rate:.1%} live, {checked.simulated.hit_rate:.1%} in "
            "virtual time"
        )
    busy = (
        " This machine fell behind its schedule, so the live times are too long."
        if checked.behind
        else ""
    )
    return (
        f"Checked with {checked.replicas} simulated replicas over HTTP and {checked.share:.0%} of "
        f"the sessions: {', '.join(parts)}{hits}.{busy}"
    )


def write_json(plan: PlanFound, path: Path) -> None:
    """Raises OSError."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")


def write_markdown(plan: PlanFound, path: Path) -> None:
    """Raises OSError."""
    said = [f"### plan: {plan.workload}", conclusion(plan)]
    said += [plan.description] if plan.description else []
    for title, choices in (("Fleets that hold", plan.choices), ("Around the best", plan.around)):
        if choices:
            heads, rows = table_rows(plan, choices)
            lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
            lines += [f"| {' | '.join(row)} |" for row in rows]
            said += [f"**{title}**", "\n".join(lines)]
    if plan.checked is not None:
        said.append(checked_said(plan.checked))
    said += [f"> **Warning:** {each}" for each in plan.warnings]
    if plan.made is not None:
        said.append(
            f"Warmroute {plan.made.version}, {plan.made.date}, `{plan.made.command}`, on "
            f"{plan.made.machine}"
        )
    path.write_text("\n\n".join(said) + "\n", encoding="utf-8")
