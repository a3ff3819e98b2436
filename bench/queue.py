"""The queue beyond capacity, in virtual time: the gateway's own code over simulated engines.

    python -m bench.queue [--seeds 11,12] [--page docs/design/queue-results.md] [TABLE ...]

Prints the tables, and what became of the goals; with --page it writes them all to a page. Takes
about four minutes of processor time for all of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from loadgen.engine import preset
from loadgen.simulate import Prepared, coarser, later, prepare, run_loop, together
from loadgen.simulate.arms import of_policy
from loadgen.simulate.fleet import Arrangement
from loadgen.simulate.peers import DYNAMO_QUEUE, LLMD_QUEUE
from loadgen.workloads import Plan, Poisson, make
from router.config.queueing import QueueSettings
from router.prompt.spans import SPANS
from router.queue.ticket import HIGH, LOW

BLOCK = 64
GOOD_S = 2.0
"""A first token by then is a good one."""
ENGINE = "32b-2xh100"
QUEUE = QueueSettings(queue_timeout=0.0)
TODAY = Arrangement("without", of_policy("cache_aware"))
WITH = Arrangement("queue", of_policy("cache_aware"), queue=QUEUE)
BY_PROMPT = Arrangement("queue, by prompt", of_policy("cache_aware"), queue=QUEUE, by_prompt=True)
SYNC_S = 0.02
AGENT = {"most_tokens": "30000"}
CODER = {
    "tool_schemas": "16", "tool_tokens": "600", "system_tokens": "4000", "result_tokens": "1500",
    "output_tokens": "150", "applications": "4", "tool_pause": "4", "steps": "30",
    "most_tokens": "90000",
}  # fmt: skip
CHAT = {"think": "30", "turns": "8", "user_tokens": "200", "output_tokens": "300"}


def plan(
    workload: str, rate: float, seconds: float, seed: int, *, finish: bool = False, **fields: object
) -> Prepared:
    settings = fields.pop("settings", {})
    made = Plan(make(workload, settings), Poisson(rate), seed=seed, duration=seconds, finish=finish)
    return prepare(made, BLOCK, SPANS, **fields)


class Run:
    """The records of one run as columns."""

    def __init__(
        self,
        prepared: Prepared,
        arm: Arrangement,
        replicas: int,
        engine: str = ENGINE,
        routers: int = 1,
        patience: float = 0.0,
    ) -> None:
        params = [coarser(preset(engine), BLOCK)] * replicas
        loop = run_loop(
            prepared, arm, params, routers=routers, sync=SYNC_S if routers > 1 else 0.0,
            patience=patience,
        )  # fmt: skip
        records = loop.records
        self.session = np.array(records.session)
        self.step = np.array(records.step)
        self.due = np.array(records.scheduled)
        self.ttft = np.array(records.first) - self.due
        self.end = np.array(records.end)
        self.ok = np.array(records.reason) == 0
        self.prompt = np.array(records.prompt_tokens)
        self.cached = np.array(records.cached_tokens)

    def steady(self, start: float, end: float) -> list[float]:
        """done a second, good a second, hit rate, p90 of later steps, mean of first ones."""
        done = self.ok & (self.end >= start) & (self.end < end)
        seconds = end - start
        good = done & (self.ttft <= GOOD_S)
        later_ = self.ttft[done & (self.step > 0)]
        first = self.ttft[done & (self.step == 0)]
        return [
            done.sum() / seconds,
            good.sum() / seconds,
            self.cached[done].sum() / max(1, self.prompt[done].sum()),
            float(np.percentile(later_, 90)) if len(later_) else 0.0,
            float(first.mean()) if len(first) else 0.0,
        ]

    def ttfts(self, sessions: range, start: float, end: float) -> list[float]:
        """mean and p99 of those due in a window."""
        those = self.ok & (self.due >= start) & (self.due < end)
        those &= (self.session >= sessions.start) & (self.session < sessions.stop)
        found = self.ttft[those]
        return [float(found.mean()), float(np.percentile(found, 99))]

    def good(self, sessions: range, start: float, end: float) -> float:
        """Share of those due in a window that are good."""
        those = (self.due >= start) & (self.due < end)
        those &= (self.session >= sessions.start) & (self.session < sessions.stop)
        return float((self.ok & (self.ttft <= GOOD_S))[those].mean())

    def same_work(self) -> float:
        """Answers a second until 95% of all have ended."""
        ends = np.sort(self.end[self.ok])
        at = int(0.95 * len(ends))
        return at / float(ends[at])


def mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [float(np.mean(column)) for column in zip(*rows, strict=True)]


def said(values: Sequence[float]) -> str:
    return " / ".join(
        f"{value:.0f}"
        if abs(value) >= 100
        else f"{value:.2g}"
        if abs(value) < 1
        else f"{value:.1f}"
        for value in values
    )


class Goal(msgspec.Struct, frozen=True):
    """What the queue was to reach, and what it did."""

    text: str
    found: str
    met: bool


class Table(msgspec.Struct):
    """One table of the page."""

    title: str
    about: str
    head: list[str]
    rows: list[list[str]] = []
    goals: list[Goal] = []

    def lines(self) -> Iterator[str]:
        """As Markdown."""
        for row in (self.head, ["---"] * len(self.head), *self.rows):
            yield "| " + " | ".join(row) + " |"


ARMS: list[tuple[str, Arrangement, int]] = [
    ("without", TODAY, 1), ("queue", WITH, 1), ("queue, 4 routers", WITH, 4),
    ("llm-d's queue", LLMD_QUEUE, 1), ("Dynamo's queue", DYNAMO_QUEUE, 1),
]  # fmt: skip
BY_PROMPT_TOO = [*ARMS[:3], ("queue, sessions by prompt", BY_PROMPT, 1), *ARMS[3:]]
AGENTS = ((4.5, 60), (6.75, 90), (9.75, 130), (14.25, 190))
"""Steps a second offered to two replicas, and what per cent of their capacity that is."""


def door(seeds: Sequence[int]) -> Table:
    """2 replicas, the last 60% of 25 minutes (coders: 30). Answers a second / good ones / hit rate
    / TTFT p90 of later steps, s / mean wait of first ones, s."""
    table = Table("Sessions beyond capacity", door.__doc__ or "", ["offered"])
    table.head += [name for name, _, _ in BY_PROMPT_TOO]
    cases: list[tuple[str, Callable[[int], Prepared], str, float]] = [
        (f"agents {rate}/s ({share}%)", lambda seed, rate=rate: plan("agent", rate, 1500, seed, keys=True, settings=AGENT), ENGINE, 1500.0)
        for rate, share in AGENTS
    ] + [
        ("coders 3/s, 8b-h100", lambda seed: plan("agent", 3, 1800, seed, keys=True, settings=CODER), "8b-h100", 1800.0)
    ]  # fmt: skip
    good: list[list[float]] = []
    for name, make_plan, engine, seconds in cases:
        found = [
            mean(
                [
                    Run(make_plan(seed), arm, 2, engine, routers).steady(0.4 * seconds, seconds)
                    for seed in seeds
                ]
            )
            for _, arm, routers in BY_PROMPT_TOO
        ]
        good.append([each[1] for each in found])
        table.rows.append([name, *map(said, found)])
    for number in (2, 3):
        name, row = cases[number][0], good[number]
        text = f"{name}: at least 7 good answers a second"
        table.goals.append(Goal(text, f"{row[1]:.1f}, without {row[0]:.2g}", row[1] >= 7.0))
    for (name, *_), row in zip(cases, good, strict=True):
        text = f"{name}: four routers within 10% of one, good answers a second"
        table.goals.append(Goal(text, f"{row[2] / row[1] - 1:+.0%}", row[2] >= 0.9 * row[1]))
    return table


def surge(seeds: Sequence[int]) -> Table:
    """Agents at 6/s, 10/s more for 90 s from 300 s on. Good answers a second of those that ended
    from 90 s after the surge to 1,500 s; TTFT p90 of later steps, s."""
    table = Table("A surge", surge.__doc__ or "", ["seed", "no surge"])
    table.head += [name for name, _, _ in ARMS]
    back = []
    for seed in seeds:
        base = plan("agent", 6, 1500, seed, keys=True, settings=AGENT)
        more = plan(
            "agent", 10, 90, seed + 100, keys=True, settings=AGENT, tenant="more", finish=True
        )
        both = together(base, later(more, 300.0))
        runs = [Run(base, TODAY, 2), *(Run(both, arm, 2, routers=n) for _, arm, n in ARMS)]
        found = [run.steady(480.0, 1500.0) for run in runs]
        table.rows.append([str(seed), *(said([each[1], each[3]]) for each in found)])
        back.append(found[2][1] / found[0][1])
    text = "after a surge back within its own length in every seed: 95% of the good answers a second there are without one"
    table.goals.append(Goal(text, ", ".join(f"{each:.0%}" for each in back), min(back) >= 0.95))
    return table


def chats(seeds: Sequence[int]) -> Table:
    """2 replicas, people who think for 30 s. The same work in both arms: answers a second until 95%
    of all sessions that come in 20 minutes are answered."""
    table = Table(
        "Chats beyond capacity", chats.__doc__ or "", ["offered", "without", "queue", "lost"]
    )
    heavy = {"think": "30", "turns": "12", "user_tokens": "300", "output_tokens": "300"}
    lost = []
    for name, rate, settings in (("chats", 4, CHAT), ("chats", 5, CHAT), ("chats", 7, CHAT),
                                 ("long chats", 4, heavy), ("long chats", 7, heavy)):  # fmt: skip
        plans = [
            plan("chat", rate, 1200, seed, keys=True, settings=settings, finish=True)
            for seed in seeds
        ]
        found = [
            float(np.mean([Run(each, arm, 2).same_work() for each in plans]))
            for arm in (TODAY, WITH)
        ]
        lost.append(1 - found[1] / found[0])
        table.rows.append(
            [f"{name} {rate}/s", f"{found[0]:.2f}", f"{found[1]:.2f}", f"{lost[-1]:.1%}"]
        )
    text = "chats beyond capacity: at most 5% of throughput lost"
    table.goals.append(Goal(text, f"at most {max(lost):.1%}", max(lost) <= 0.05))
    return table


def classes(seeds: Sequence[int]) -> Table:
    """240 s. TTFT mean / p99 of the first class; of the second. Seconds."""
    table = Table("Classes", classes.__doc__ or "", ["case", "first class alone"])
    table.head += [name for name, _, _ in ARMS]
    high, low = {"priority": HIGH}, {"priority": LOW}
    batch = ("rag", 14, 240, low)
    cases: list[tuple[str, tuple[object, ...], tuple[object, ...], int]] = [
        (f"interactive {name} {rate}/s, batch rag 14/s, 4 replicas", (name, rate, 240, {**high, **more}), batch, 4)
        for name, rate, more in (("unique", 12, {}), ("rag", 6, {}), ("chat", 12, {"keys": True}),
                                 ("agent", 8, {"keys": True, "settings": AGENT}))
    ]  # fmt: skip
    cases += [
        ("at 75% load: unique 6/s, rag 7/s, 4 replicas", ("unique", 6, 240, high), ("rag", 7, 240, low), 4),
        ("KV memory full: unique 3/s, ladder 30/s, 2 replicas", ("unique", 3, 240, high), ("ladder", 30, 240, low), 2),
        ("tenant a 2/s, tenant b 20/s (rag), 4 replicas", ("rag", 2, 240, {"tenant": "a"}), ("rag", 20, 240, {"tenant": "b"}), 4),
    ]  # fmt: skip
    for name, first, second, replicas in cases:
        alone: list[list[float]] = []
        rows: list[list[list[float]]] = [[] for _ in ARMS]
        good: list[list[float]] = []
        for seed in seeds:
            a = plan(*first[:3], seed, **first[3])
            b = plan(*second[:3], seed + 50, **second[3])
            count = max(jobs[0].session for _, jobs in a.sessions) + 1
            own, others = range(count), range(count, 1 << 40)
            alone.append(Run(a, TODAY, replicas).ttfts(own, 60, 240))
            both = together(a, b)
            runs = [Run(both, arm, replicas, routers=routers) for _, arm, routers in ARMS]
            for row, run in zip(rows, runs, strict=True):
                row.append(run.ttfts(own, 60, 240) + run.ttfts(others, 60, 240))
            good.append([run.good(own, 60, 240) for run in runs])
        cells = [mean(each) for each in rows]
        table.rows.append(
            [name, said(mean(alone)), *(f"{said(each[:2])}; {said(each[2:])}" for each in cells)]
        )
        if "tenant" in first[3]:
            found = mean(good)
            text = "the flooded tenant: at least 95% of its answers are good"
            table.goals.append(
                Goal(text, f"{found[1]:.0%}, without {found[0]:.0%}", found[1] >= 0.95)
            )
        else:
            times = cells[1][1] / mean(alone)[1]
            text = f"{name}: p99 at most 1.5 times that alone"
            table.goals.append(Goal(text, f"{times:.2f} times", times <= 1.5))
    return table


def refusal(seeds: Sequence[int]) -> Table:
    """8 replicas, a limit of 2 s, clients leave after 30 s. Share of offered requests with a first
    token within 2 s."""
    table = Table("Refusal in time", refusal.__doc__ or "", ["case", "without", "ttft_limit 2"])
    shed = Arrangement(
        "limit", of_policy("cache_aware"), queue=QueueSettings(queue_timeout=0.0, ttft_limit=2.0)
    )
    for name, full in (("unique", 35.0), ("rag", 25.0), ("hot", 80.0), ("burst", 60.0)):
        for share in (1.1, 1.5):
            row = [f"{name}, {share:.0%} of {full:g}/s"]
            for arm in (TODAY, shed):
                found = []
                for seed in seeds:
                    run = Run(plan(name, full * share, 120, seed), arm, 8, patience=30.0)
                    found.append(float((run.ok & (run.ttft <= GOOD_S)).mean()))
                row.append(f"{np.mean(found):.2f}")
            table.rows.append(row)
    return table


def unchanged(seeds: Sequence[int]) -> Table:
    """2 replicas, 400 s. TTFT mean / p99 / end to end mean, s."""
    table = Table("Below capacity", unchanged.__doc__ or "", ["case", "without", "queue"])
    worst, where = 0.0, ""
    for name, full, keys, settings in (
        ("agent", 7.5, True, AGENT), ("chat", 17.0, True, {}), ("rag", 6.0, False, {}), ("hot", 18.0, False, {}),
        ("burst", 14.0, False, {}), ("unique", 8.5, False, {}), ("ladder", 1.4, False, {}),
    ):  # fmt: skip
        for share in (0.6, 0.9):
            case = f"{name} {full * share:.3g}/s ({share:.0%})"
            arms = []
            for arm in (TODAY, WITH):
                found = []
                for seed in seeds:
                    run = Run(
                        plan(name, full * share, 400, seed, keys=keys, settings=settings), arm, 2
                    )
                    ttft = run.ttft[run.ok]
                    whole = (run.end - run.due)[run.ok]
                    found.append(
                        [float(ttft.mean()), float(np.percentile(ttft, 99)), float(whole.mean())]
                    )
                arms.append(mean(found))
            table.rows.append([case, *(" / ".join(f"{each:.4g}" for each in row) for row in arms)])
            worse = max(queue / today - 1 for today, queue in zip(*arms, strict=True))
            if worse > worst:
                worst, where = worse, case
    text = "at 60 and 90% of capacity no time is worse by more than 1%"
    table.goals.append(Goal(text, f"{worst:.1%}, {where}" if where else "equal", worst <= 0.01))
    return table


TABLES = {each.__name__: each for each in (door, surge, chats, classes, refusal, unchanged)}


def page(tables: Sequence[Table], seeds: str) -> str:
    """All tables, and what became of the goals before them."""
    goals = [goal for table in tables for goal in table.goals]
    met = sum(goal.met for goal in goals)
    parts = [
        "# Results of the queue\n",
        "This page answers: what does the queue change where caches and prefill bind for minutes?\n\n"
        "[queue.md](queue.md) says how it works. The short runs of [results.md](results.md) do not "
        "reach such\nminutes.\n",
        "`python -m bench.queue --page docs/design/queue-results.md` writes all of it: the gateway's "
        "own queue, placer\nand policy over simulated engines in virtual time. None of it was "
        f"measured on GPUs. Means of seeds {seeds};\nthe rule for classes was chosen with 11 to 13 in sight. 32b-2xh100 "
        "unless said. *good*: a first token within 2 s.\n",
        "llm-d's flow control and Dynamo's queue are **our reading of their documents**, not those "
        "programs, with their\nown rule for the choice of a replica, told exactly what every cache "
        "holds (`loadgen/simulate/peers/holding.py`).\nBoth are opt-in there. llm-d has published a smaller effect "
        "of a batch with its own, other load: interactive\np99 96.5 ms alone, 941 beside the batch, 329.7 "
        "with flow control (llm-d-batch-gateway#491).\n",
        f"## The goals: {met} of {len(goals)} met\n",
        "| goal | found | |\n|---|---|---|",
        *(
            f"| {goal.text} | {goal.found} | {'met' if goal.met else '**missed**'} |"
            for goal in goals
        ),
    ]
    for table in tables:
        about = " ".join(table.about.split())
        parts += [f"\n## {table.title}\n", f"{about}\n", *table.lines()]
    return "\n".join(parts) + "\n"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench.queue", description=__doc__)
    parser.add_argument("--seeds", default="11,12")
    parser.add_argument("--page", type=Path, help="write all tables to this file")
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], default=[])
    options = parser.parse_args(argv)
    if options.page and options.tables:
        parser.error("--page writes all tables: name none")
    seeds = [int(each) for each in options.seeds.split(",")]
    made = []
    for name in options.tables or TABLES:
        table = TABLES[name](seeds)
        made.append(table)
        print(f"\n{name}: {' '.join(table.about.split())}; seeds {options.seeds}\n")
        print("\n".join(table.lines()))
        for goal in table.goals:
            print(f"{'met' if goal.met else 'MISSED'}: {goal.text}: {goal.found}")
        sys.stdout.flush()
    if options.page:
        # What was measured by other programs is written by hand, and stays.
        old = options.page.read_text(encoding="utf-8") if options.page.exists() else ""
        _, apart, kept = old.partition("\n## Measured apart\n")
        options.page.write_text(page(made, options.seeds) + apart + kept, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
