"""What a person sees: progress while it runs, then tables. Plain lines where there is no
terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from loadgen.client.driver import Progress
from loadgen.results import Arm, Latency, Results
from loadgen.workloads.plan import Plan

PLAIN_SECONDS = 5.0
"""Between two lines of progress where there is no terminal."""

MOST_COLUMNS = 4
"""Arms beside each other; more are rows."""


def percent(share: float | None) -> str:
    return "not told" if share is None else f"{share:.1%}"


def milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


class Screen:
    """Shows runs as they go: one line each. Use as a context manager around them."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._live: Live | None = None
        self._rows: list[list[str]] = []
        self._duration = 0.0
        self._printed = 0.0

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def started(self, arm: str, load: float, repeat: int, plan: Plan) -> None:
        self._duration = plan.duration
        title = (
            arm + (f" at {load:g}" if load else "") + (f", again ({repeat + 1})" if repeat else "")
        )
        self._rows.append([title, "starting", "", "", ""])
        self._printed = time.monotonic()
        if not self._live:
            self._line(f"{title}: starting")
        self._show()

    def progress(self, progress: Progress) -> None:
        done = f"{progress.now:.0f} s" + (f" of {self._duration:.0f}" if self._duration else "")
        hit = progress.cached_tokens / progress.prompt_tokens if progress.prompt_tokens else None
        ended = f"{progress.ended} of {progress.sent}"
        if progress.failed:
            ended += f" ({progress.failed} failed)"
        ttft = milliseconds(_median(list(progress.recent)) * 1e3) if progress.recent else ""
        self._rows[-1][1:] = [done, ended, percent(hit) if hit is not None else "", ttft]
        if not self._live and time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            title = self._rows[-1][0]
            self._line(
                f"{title}: {done}, {ended} requests done, hit rate {percent(hit)}, "
                f"TTFT now {ttft or '-'} ms"
            )
        self._show()

    def ended(self, arm: Arm) -> None:
        self._rows[-1][1:] = [
            "done",
            f"{arm.completed} of {arm.requests}",
            percent(arm.hit_rate),
            milliseconds(arm.ttft_ms.p50),
        ]
        if not self._live:
            self._line(
                f"{self._rows[-1][0]}: done, {arm.completed} of {arm.requests} requests, hit rate "
                f"{percent(arm.hit_rate)}, TTFT p50 {milliseconds(arm.ttft_ms.p50)} ms"
            )
        self._show()

    def _line(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)

    def _show(self) -> None:
        if not self._live:
            return
        table = Table(box=None, pad_edge=False)
        table.add_column("routing", style="bold")
        for title in ("time", "requests done", "hit rate", "TTFT now, ms"):
            table.add_column(title, justify="right")
        for row in self._rows:
            table.add_row(*row)
        self._live.update(table)


def _latency_rows(
    title: str, arms: list[Arm], field: str, parts: tuple[str, ...]
) -> list[list[str]]:
    rows = []
    for part in parts:
        values: list[Latency] = [getattr(arm, field) for arm in arms]
        row = [f"{title} {part}, ms"]
        row += [milliseconds(getattr(value, part)) if value.count else "-" for value in values]
        rows.append(row)
    return rows


def summary_table(results: Results) -> Table:
    """One column for each arm."""
    arms = results.arms
    table = Table(
        title=f"{results.kind}: {results.workload}", title_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("")
    for arm in arms:
        table.add_column(arm.name, justify="right")
    rows = [
        ["hit rate", *(percent(arm.hit_rate) for arm in arms)],
        ["most possible", *(percent(arm.upper_bound) for arm in arms)],
        *_latency_rows("TTFT", arms, "ttft_ms", ("mean", "p50", "p90", "p99")),
        *_latency_rows("TPOT", arms, "tpot_ms", ("mean", "p99")),
        *_latency_rows("ITL", arms, "itl_ms", ("p99",)),
        *_latency_rows("end to end", arms, "e2e_ms", ("mean", "p90")),
        ["requests/s", *(f"{arm.throughput.requests_per_s:.2f}" for arm in arms)],
        ["output tokens/s", *(f"{arm.throughput.output_tokens_per_s:,.0f}" for arm in arms)],
    ]
    if any(arm.goodput for arm in arms):
        rows.append(
            ["goodput, requests/s"]
            + [f"{arm.goodput.requests_per_s:.2f}" if arm.goodput else "-" for arm in arms]
        )
    rows += [
        ["failed", *(str(sum(arm.errors.values())) for arm in arms)],
        ["work, max over mean", *(f"{arm.balance.work_max_over_mean:.2f}" for arm in arms)],
        ["requests", *(f"{arm.completed}" for arm in arms)],
    ]
    for row in rows:
        table.add_row(*row)
    return table


def many_table(results: Results) -> Table:
    """One row for each arm, for more arms than fit beside each other."""
    table = Table(
        title=f"{results.kind}: {results.workload}", title_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("", no_wrap=True)
    for title in (
        "load",
        "hits",
        "most",
        "TTFT p50",
        "p90",
        "p99 ms",
        "output tok/s",
        "failed",
    ):
        table.add_column(title, justify="right")
    for arm in results.arms:
        table.add_row(
            arm.name,
            f"{arm.load:g}" if arm.load else "",
            percent(arm.hit_rate),
            percent(arm.upper_bound),
            *(milliseconds(getattr(arm.ttft_ms, part)) for part in ("p50", "p90", "p99")),
            f"{arm.throughput.output_tokens_per_s:,.0f}",
            str(sum(arm.errors.values())),
        )
    return table


def replica_table(arms: list[Arm]) -> Table:
    """Requests and hit rate of every replica under every arm."""
    table = Table(title="replicas: requests, hit rate", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    for arm in arms:
        table.add_column(arm.name, justify="right")
    most = max((len(arm.replicas) for arm in arms), default=0)
    for place in range(most):
        row = [str(place + 1)]
        for arm in arms:
            if place < len(arm.replicas):
                replica = arm.replicas[place]
                row.append(f"{replica.requests}, {percent(replica.hit_rate)}")
            else:
                row.append("-")
        table.add_row(*row)
    return table


def difference_table(results: Results) -> Table:
    """Differences with their intervals."""
    base = results.differences[0].baseline
    table = Table(
        title=f"against {base}, with 95% intervals", title_justify="left", box=SIMPLE_HEAD
    )
    for title in ("", "what", "difference", "interval"):
        table.add_column(title, justify="right" if title in ("difference", "interval") else "left")
    for each in results.differences:
        if each.metric == "hit_rate":
            value, low, high = (f"{x * 100:+.1f}" for x in (each.value, each.low, each.high))
            unit = " points"
        else:
            value, low, high = (f"{x:+,.1f}" for x in (each.value, each.low, each.high))
            unit = ""
        relative = "" if each.relative is None else f" ({each.relative:+.0%})"
        table.add_row(each.arm, each.metric, f"{value}{unit}{relative}", f"{low} to {high}")
    return table


def show(
    results: Results, console: Console, *, soft_wrap: bool = True, brief: bool = False
) -> None:
    """What a command ends with. With soft_wrap the terminal breaks long lines; brief leaves out the
    replicas and the intervals."""
    if results.description:
        console.print(results.description, highlight=False, soft_wrap=soft_wrap)
    if results.kind == "sweep" or len(results.arms) > MOST_COLUMNS:
        console.print(many_table(results))
    else:
        console.print(summary_table(results))
        if not brief and any(arm.replicas for arm in results.arms):
            console.print(replica_table(results.arms))
        if results.differences and not brief:
            console.print(difference_table(results))
    for arm in results.arms:
        if arm.savings and results.kind != "sweep":
            money = arm.savings.money_per_million_requests
            priced = "" if money is None else f", {money:,.2f} for a million requests"
            console.print(
                f"{arm.name}: {arm.savings.prefill_tokens:,.0f} prompt tokens not computed that "
                f"{results.arms[0].name} would have, {arm.savings.gpu_seconds:,.1f} GPU-seconds"
                f"{priced}",
                highlight=False,
                soft_wrap=soft_wrap,
            )
        for reason, count in arm.errors.items():
            console.print(f"{arm.name}: {count} requests failed: {reason}", style="yellow")
    for warning in results.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=soft_wrap)
    if results.conclusion:
        console.print(results.conclusion, style="bold", highlight=False, soft_wrap=soft_wrap)
