"""The section of docs/design/results.md about real engines, from what a comparison wrote."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap

from loadgen.reproduce.verdict import value
from loadgen.results.schema import Arm, Difference, Results, read_json

FILE = Path("docs/design/results-engines.json")
"""The file that `make engines` writes."""
TITLE = "Two real engines"
_METRICS = {
    "hit_rate": "hit rate",
    "ttft_ms.mean": "TTFT mean",
    "ttft_ms.p50": "p50",
    "ttft_ms.p90": "p90",
    "ttft_ms.p99": "p99",
    "e2e_ms.mean": "end to end mean",
}
_HEAD = ["| | " + " | ".join(_METRICS.values()) + " |", "|---|" + "---:|" * len(_METRICS)]
_MISSING = f"""## {TITLE}

Missing from this run: there was no {FILE.name}. `make engines` measures and writes it.
"""


def read_engines(path: Path) -> Results | None:
    """None when there is no such file. Raises ResultsError and OSError."""
    return read_json(path) if path.exists() else None


def section(results: Results | None) -> str:
    """The section, or that it is missing."""
    if results is None:
        return _MISSING
    base, *others = results.arms
    failed = sum(sum(arm.errors.values()) for arm in results.arms)
    parts = [
        f"## {TITLE}\n",
        f"Not simulated. {results.description} `make engines` repeats it and writes {FILE.name}, "
        "of which this section is made:\n",
        _shell(results.settings.get("command", "")),
        f"{base.requests:,} requests for each arm in {base.repeats} runs, {failed} failed over all "
        f"arms; most possible hit rate {base.upper_bound:.1%}. Milliseconds.\n",
        _table(results.arms),
        f"Less {base.name}'s, with 95% intervals:\n",
        _differences(base, others, results.differences),
        "Hit rates follow from what was sent where and from the size of the caches, and depend "
        "little on the machine. Times on a CPU with a tiny model say little about GPUs: engines, "
        "gateway and load generator share the same cores, and computing a prompt costs something "
        "else there.\n",
    ]
    if results.warnings:
        parts.append("Warnings of the run:\n\n" + "\n".join(f"- {w}" for w in results.warnings))
        parts[-1] += "\n"
    return "\n".join(parts)


def _shell(command: str) -> str:
    """A block of code that a shell takes as one line."""
    lines = wrap(command, 100, break_long_words=False, break_on_hyphens=False)
    return "    " + " \\\n      ".join(lines) + "\n"


def _table(arms: list[Arm]) -> str:
    rows = [*_HEAD]
    for arm in arms:
        hit = "-" if arm.hit_rate is None else f"{arm.hit_rate:.1%}"
        times = (metric for metric in _METRICS if metric != "hit_rate")
        cells = " | ".join(f"{value(arm, metric):,.0f}" for metric in times)
        rows.append(f"| {arm.name} | {hit} | {cells} |")
    return "\n".join(rows) + "\n"


def _differences(base: Arm, others: list[Arm], found: list[Difference]) -> str:
    rows = [*_HEAD]
    for arm in others:
        own = {
            each.metric: each
            for each in found
            if each.arm == arm.name and each.baseline == base.name
        }
        cells = [_cell(own[metric]) if metric in own else "-" for metric in _METRICS]
        rows.append(f"| {arm.name} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _cell(each: Difference) -> str:
    if each.metric == "hit_rate":
        middle, low, high = (f"{100 * part:+.1f}" for part in (each.value, each.low, each.high))
        return f"{middle} points ({low} to {high})"
    return f"{each.value:+,.0f} ({each.low:+,.0f} to {each.high:+,.0f})"
