"""What a person sees of runs as they go. Plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loadgen.client.driver import Progress, ReplicaProgress
from loadgen.results.measures import NONE, milliseconds, percent
from loadgen.results.schema import Arm
from loadgen.show.replica_names import short_names
from loadgen.workloads.plan import Plan

PLAIN_SECONDS = 5.0
"""Between two lines of progress where there is no terminal."""
WIDE = 80
"""Columns from which TTFT is shown while it runs; the rest fits without it."""
MOST_REPLICA_LINES = 8


class _Row(msgspec.Struct):
    """One run: what is shown of it."""

    title: str
    duration: float
    began: float
    state: str = ""
    done: str = ""
    rate: str = ""
    hit_rate: str = ""
    ttft: str = ""
    replicas: Sequence[ReplicaProgress] = ()


class Screen:
    """Shows runs as they go: one line each. Use as a context manager around them."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._live: Live | None = None
        self._rows: list[_Row] = []
        self._printed = 0.0

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            # By itself, so that a simulation's clock goes on, which tells nothing until its end.
            self._live = Live(self, console=self.console, refresh_per_second=8, transient=True)
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
        title = (
            arm + (f" at {load:g}" if load else "") + (f", again ({repeat + 1})" if repeat else "")
        )
        self._printed = time.monotonic()
        self._rows.append(_Row(title, plan.duration, self._printed))
        if not self._live:
            self._line(f"{title}: starting")

    def progress(self, progress: Progress) -> None:
        row = self._rows[-1]
        row.state = _state(progress.now, row.duration)
        row.done = f"{progress.ended} of {progress.sent}" if progress.sent else ""
        if progress.failed:
            row.done += f" ({progress.failed} failed)"
        row.rate = f"{progress.rate:.1f}"
        if progress.prompt_tokens:
            row.hit_rate = percent(progress.cached_tokens / progress.prompt_tokens)
        if progress.recent:
            row.ttft = milliseconds(_median(list(progress.recent)) * 1e3)
        row.replicas = progress.replicas
        if not self._live and time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            self._line(f"{row.title}: {', '.join(_said(row))}")

    def ended(self, arm: Arm) -> None:
        row = self._rows[-1]
        row.state = "done"
        row.done = f"{arm.completed} of {arm.requests}"
        row.rate = f"{arm.throughput.requests_per_s:.1f}"
        row.hit_rate = NONE if arm.hit_rate is None else percent(arm.hit_rate)
        p50 = arm.ttft_ms.p50
        row.ttft = NONE if p50 is None else milliseconds(p50)
        row.replicas = ()
        if not self._live:
            self._line(
                f"{row.title}: done, {row.done} requests, {row.rate} requests/s, hit rate "
                f"{row.hit_rate}, TTFT p50 {row.ttft} ms"
            )

    def _line(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)

    def __rich__(self) -> RenderableType:
        """What fits: the last runs, so that the one under way is always there, and its replicas."""
        if not self._rows:
            return Text("")
        width, height = self.console.size
        replicas = _replica_lines(self._rows[-1].replicas, width, height)
        room = max(1, height - len(replicas) - 3)
        shown = self._rows[-room:]
        parts: list[RenderableType] = []
        hidden = len(self._rows) - len(shown)
        if hidden:
            parts.append(Text(f"{hidden} runs before these", style="dim"))
        parts.append(_table(shown, width))
        parts += [Text(line, no_wrap=True, overflow="ellipsis") for line in replicas]
        return Group(*parts)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _state(now: float, duration: float) -> str:
    if not duration:
        return f"{now:.0f} s"
    return f"{now:.0f} of {duration:.0f} s" if now < duration else f"{now:.0f} s, finishing"


def _said(row: _Row) -> list[str]:
    """Everything known of a run under way, in words."""
    said = [row.state, f"{row.done} requests done" if row.done else "no request was due yet"]
    if row.done:
        said.append(f"{row.rate} requests/s")
    if row.hit_rate:
        said.append(f"hit rate {row.hit_rate}")
        if row.replicas:
            said[-1] += f" ({_range(row.replicas)} by replica)"
    if row.ttft:
        said.append(f"TTFT now {row.ttft} ms")
    return said


def _table(rows: Sequence[_Row], width: int) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("routing", style="bold", no_wrap=True, overflow="ellipsis")
    titles = ["time", "requests done", "requests/s", "hit rate", "TTFT now, ms"]
    for title in titles if width >= WIDE else titles[:-1]:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        state = row.state or f"running, {time.monotonic() - row.began:.0f} s"
        cells = [row.title, state, row.done, row.rate, row.hit_rate, row.ttft]
        table.add_row(*cells[: len(table.columns)])
    return table


def _replica_lines(replicas: Sequence[ReplicaProgress], width: int, height: int) -> list[str]:
    """Requests and hit rate of each replica, or of all in a line where there are too many."""
    if not replicas:
        return []
    names = short_names([replica.name for replica in replicas])
    wide = max(map(len, names))
    cells = [
        f"{name:>{wide}} {replica.requests:6,} {_share(replica.hit_rate):>5}"
        for name, replica in zip(names, replicas, strict=True)
    ]
    beside = max(1, width // (len(cells[0]) + 4))
    lines = ["    ".join(cells[at : at + beside]) for at in range(0, len(cells), beside)]
    if len(lines) > min(MOST_REPLICA_LINES, max(1, height // 3)):
        fewest = min(replica.requests for replica in replicas)
        most = max(replica.requests for replica in replicas)
        lines = [f"{fewest:,} to {most:,}, hit rate {_range(replicas)}"]
    return ["", f"{len(replicas)} replicas: requests, hit rate", *lines]


def _range(replicas: Sequence[ReplicaProgress]) -> str:
    rates = [replica.hit_rate for replica in replicas if replica.hit_rate is not None]
    if not rates:
        return "not told"
    return f"{min(rates):.0%} to {max(rates):.0%}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.0%}"
