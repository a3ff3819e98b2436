"""What a command ends with in a terminal: tables that fit into its width."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadgen.results.measures import MEASURES, NONE, Measure, failures, known, remarks
from loadgen.results.schema import Arm, Difference, ReplicaResult, Results
from loadgen.show.plain import say

MOST_COLUMNS = 4
"""Arms beside each other; more are rows."""
TITLES = 10
"""Columns of a terminal that titles need beside their longest word, to be broken in few lines."""
MOST_REPLICAS = 16
"""Listed one by one; of more, the spread is told."""
ORDER = (
    "Hit rate",
    "TTFT p50, ms",
    "TTFT p99, ms",
    "Failed",
    "Output tok/s",
    "Goodput req/s",
    "Busiest / mean",
    "GPU-s saved",
    "Req/s",
    "TPOT mean, ms",
    "TTFT mean, ms",
    "Most poss.",
    "End to end p90, ms",
    "Money saved",
    "TTFT p90, ms",
)
"""Which measures stay where an arm is a row and not all fit: as many of the first as do."""


def show(
    results: Results, console: Console, *, soft_wrap: bool = True, brief: bool = False
) -> None:
    """What a command ends with. With soft_wrap the terminal breaks long lines; brief leaves out the
    replicas and the intervals."""
    arms = results.arms
    if results.description:
        say(console, results.description, soft_wrap=soft_wrap)
    if arms:
        _summary(results, console, soft_wrap=soft_wrap)
    alone = results.kind not in ("sweep", "report")
    if alone and not brief:
        _replicas(arms, console)
        for arm in arms:
            own = [each for each in results.differences if each.arm == arm.name]
            if own:
                table = difference_table(own)
                if not _fits(table, console):
                    table = difference_table(own, relative=False)
                console.print(table)
    for remark in remarks(results):
        say(console, remark, "dim", soft_wrap=soft_wrap)
    for failure in failures(results):
        say(console, failure, "yellow", soft_wrap=soft_wrap)
    for warning in results.warnings:
        say(console, f"warning: {warning}", "yellow", soft_wrap=soft_wrap)
    if results.conclusion:
        say(console, results.conclusion, "bold", soft_wrap=soft_wrap)


def _summary(results: Results, console: Console, *, soft_wrap: bool) -> None:
    if results.kind not in ("sweep", "report") and len(results.arms) <= MOST_COLUMNS:
        table = across(results)
        # Titles may be broken, numbers not.
        if console.measure(table).minimum + TITLES <= console.width:
            console.print(table)
            return
    table, left_out = down(results, console)
    console.print(table)
    if left_out:
        said = f"Not in {console.width} columns: {'; '.join(left_out)}. --csv and --json have all."
        say(console, said, "dim", soft_wrap=soft_wrap)


def _titled(results: Results, more: str = "") -> Text:
    return Text(f"{results.kind}: {results.workload}{more}")


def _fits(table: Table, console: Console) -> bool:
    """Nothing in it needs to be broken."""
    unlimited = console.options.update(max_width=10_000)
    return console.measure(table, options=unlimited).maximum <= console.width


def across(results: Results) -> Table:
    """A measure in each row, an arm in each column."""
    arms = results.arms
    table = Table(title=_titled(results), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    for arm in arms:
        table.add_column(Text(arm.name), justify="right", no_wrap=True)
    for measure in known(arms):
        if not measure.detail:
            table.add_row(measure.title, *(measure.said(arm) for arm in arms))
    return table


def down(results: Results, console: Console) -> tuple[Table, list[str]]:
    """An arm in each row and as many measures as fit, in ORDER; and the titles of those that do
    not."""
    have = {measure.brief: measure for measure in known(results.arms) if measure.brief}
    wanted = [have[title] for title in ORDER if title in have]
    if not any(arm.errors for arm in results.arms):
        wanted = [measure for measure in wanted if measure.brief != "Failed"]
    chosen = wanted
    table = _down(results, chosen)
    while len(chosen) > 1 and not _fits(table, console):
        chosen = chosen[:-1]
        table = _down(results, chosen)
    return table, [measure.brief for measure in wanted[len(chosen) :]]


def _down(results: Results, chosen: Sequence[Measure]) -> Table:
    """In the order of MEASURES, whichever were chosen."""
    sweep = results.kind == "sweep"
    load = f"load in {results.axis}, " if sweep and results.axis else ""
    table = Table(
        title=_titled(results, f" ({load}times in ms)"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", overflow="fold")
    if sweep:
        table.add_column("load", justify="right", no_wrap=True)
    ordered = [measure for measure in MEASURES if measure in chosen]
    for measure in ordered:
        table.add_column(
            _two_lines(measure.brief.removesuffix(", ms")), justify="right", no_wrap=True
        )
    for place, arm in enumerate(results.arms):
        name = [Text(arm.name), Text(f"{arm.load:g}")] if sweep else [Text(arm.name)]
        following = results.arms[place + 1 : place + 2]
        ends = sweep and any(other.load != arm.load for other in following)
        said = [measure.said(arm) for measure in ordered]
        table.add_row(*name, *said, end_section=ends)
    return table


def _two_lines(title: str) -> str:
    """Broken at the blank nearest to the middle."""
    blanks = [place for place, letter in enumerate(title) if letter == " "]
    if not blanks:
        return title
    middle = min(blanks, key=lambda place: abs(place - len(title) / 2))
    return f"{title[:middle]}\n{title[middle + 1 :]}"


def _replicas(arms: Sequence[Arm], console: Console) -> None:
    """Requests and hit rate of every replica under every arm, as many arms beside each other as
    fit; of many replicas, their spread."""
    listed = [arm for arm in arms if 0 < len(arm.replicas) <= MOST_REPLICAS]
    while listed:
        beside = len(listed)
        while beside > 1 and not _fits(replica_table(listed[:beside]), console):
            beside -= 1
        console.print(replica_table(listed[:beside]))
        listed = listed[beside:]
    for arm in arms:
        if len(arm.replicas) > MOST_REPLICAS:
            requests = [replica.requests for replica in arm.replicas]
            rates = [each.hit_rate for each in arm.replicas if each.hit_rate is not None]
            hits = f", hit rates {min(rates):.1%} to {max(rates):.1%}" if rates else ""
            say(
                console,
                f"{arm.name}: {len(requests)} replicas, {min(requests):,} to {max(requests):,} "
                f"requests{hits}",
            )


def replica_table(arms: Sequence[Arm]) -> Table:
    """A replica in each row, an arm in each column."""
    table = Table(title="requests, hit rate by replica", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for arm in arms:
        table.add_column(Text(arm.name), justify="right", no_wrap=True)
    by_name = [{replica.name: replica for replica in arm.replicas} for arm in arms]
    for name in dict.fromkeys(name for replicas in by_name for name in replicas):
        table.add_row(Text(name), *(_replica(replicas.get(name)) for replicas in by_name))
    return table


def _replica(replica: ReplicaResult | None) -> str:
    if replica is None:
        return NONE
    return f"{replica.requests:,}, {'-' if replica.hit_rate is None else f'{replica.hit_rate:.1%}'}"


def difference_table(differences: Sequence[Difference], *, relative: bool = True) -> Table:
    """Of one arm against its baseline, with their intervals."""
    first = differences[0]
    table = Table(
        title=Text(f"{first.arm} against {first.baseline}, with 95% intervals"),
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("", no_wrap=True)
    for title in ("difference", "relative", "interval") if relative else ("difference", "interval"):
        table.add_column(title, justify="right", no_wrap=True)
    by_metric = {measure.metric: measure for measure in MEASURES if measure.metric}
    for each in differences:
        measure = by_metric.get(each.metric)
        if measure is None:
            continue
        title = f"{measure.title}, points" if each.metric == "hit_rate" else measure.title
        share = "" if each.relative is None else f"{each.relative:+.0%}"
        low, high = measure.signed(each.low), measure.signed(each.high)
        cells = [measure.signed(each.value), share, f"{low} to {high}"]
        table.add_row(title, *(cells if relative else [cells[0], cells[2]]))
    return table
