"""The measures of an arm that tables show: how each is called, read, written and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from loadgen.results.schema import Arm, Difference, Results

NONE = "-"
"""Written where a value is not known."""


class Measure(msgspec.Struct, frozen=True):
    """One quantity that tables show of an arm, and how it is written."""

    title: str
    value: Callable[[Arm], float | None]
    form: Callable[[float], str]
    metric: str = ""
    """As in Difference; empty when no interval is computed for it."""
    more_is_better: bool | None = None
    brief: str = ""
    """Its title in tables with an arm in each row; empty: not in those."""
    detail: bool = False
    """Left out of tables in a terminal."""

    def said(self, arm: Arm) -> str:
        """The arm's value as text."""
        value = self.value(arm)
        return NONE if value is None else self.form(value)

    def signed(self, change: float) -> str:
        """A change of it, in points when it is a share."""
        if self.form is percent:
            return f"{change * 100:+.1f}"
        return f"{'-' if change < 0 else '+'}{self.form(abs(change))}"

    def better(self, difference: Difference | None) -> bool | None:
        """Whether an interval says that it became better or worse; None when none does."""
        if difference is None or difference.low <= 0 <= difference.high:
            return None
        return (difference.value > 0) == self.more_is_better


def percent(value: float) -> str:
    return f"{value:.1%}"


def milliseconds(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def count(value: float) -> str:
    return f"{value:,.0f}"


def money(value: float) -> str:
    return f"{value:,.2f}" if abs(value) >= 0.1 or not value else f"{value:.2g}"


def ratio(value: float) -> str:
    return f"{value:.2f}"


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
_BRIEF = {"ttft_ms.mean", "ttft_ms.p50", "ttft_ms.p90", "ttft_ms.p99", "tpot_ms.mean", "e2e_ms.p90"}
_DETAILS = {"ttft_ms.p95", "itl_ms.mean", "e2e_ms.p99"}


def _of_latency(field: str, part: str) -> Measure:
    metric = f"{field}.{part}"
    title = f"{_TITLES[field]} {part}, ms"
    return Measure(
        title,
        _latency(field, part),
        milliseconds,
        metric,
        more_is_better=False,
        brief=title if metric in _BRIEF else "",
        detail=metric in _DETAILS,
    )


MEASURES = (
    Measure("Hit rate", lambda arm: arm.hit_rate, percent, "hit_rate", True, "Hit rate"),
    Measure(
        "Most possible",
        lambda arm: arm.upper_bound if arm.completed else None,
        percent,
        brief="Most poss.",
    ),
    *(_of_latency(field, part) for field, parts in _PARTS.items() for part in parts),
    Measure(
        "Requests a second",
        lambda arm: arm.throughput.requests_per_s,
        plain,
        "throughput.requests_per_s",
        True,
        "Req/s",
    ),
    Measure(
        "Output tokens a second",
        lambda arm: arm.throughput.output_tokens_per_s,
        plain,
        "throughput.output_tokens_per_s",
        True,
        "Output tok/s",
    ),
    Measure(
        "Goodput, requests a second",
        lambda arm: arm.goodput.requests_per_s if arm.goodput else None,
        plain,
        "goodput.requests_per_s",
        True,
        "Goodput req/s",
    ),
    Measure("Requests", lambda arm: float(arm.requests), count),
    Measure("Failed", lambda arm: float(sum(arm.errors.values())), count, brief="Failed"),
    Measure(
        "Busiest replica's work / mean",
        lambda arm: arm.balance.work_max_over_mean if arm.balance else None,
        ratio,
        brief="Busiest / mean",
    ),
    Measure(
        "GPU-seconds of prefill saved",
        lambda arm: arm.savings.gpu_seconds if arm.savings else None,
        plain,
        brief="GPU-s saved",
    ),
    Measure(
        "Money saved",
        lambda arm: arm.savings.money if arm.savings else None,
        money,
        brief="Money saved",
    ),
    Measure(
        "Money saved, a million requests",
        lambda arm: arm.savings.money_per_million_requests if arm.savings else None,
        money,
    ),
)


def known(arms: Sequence[Arm]) -> list[Measure]:
    """Those that at least one arm has."""
    return [each for each in MEASURES if any(each.value(arm) is not None for arm in arms)]


def failures(results: Results) -> list[str]:
    """Requests that failed, arms with the same in one sentence."""
    arms: dict[tuple[str, int], list[str]] = {}
    for arm in results.arms:
        name = f"{arm.name} at {arm.load:g}" if results.kind == "sweep" else arm.name
        for reason, failed in arm.errors.items():
            arms.setdefault((reason, failed), []).append(name)
    return [
        f"{', '.join(names)}: {failed:,} request{'' if failed == 1 else 's'} failed"
        f"{' in each' if len(names) > 1 else ''}: {reason}"
        for (reason, failed), names in arms.items()
    ]


def remarks(results: Results) -> list[str]:
    """What goodput and savings in a table mean; nothing without them."""
    said = []
    asked = next((arm.goodput.objectives_ms for arm in results.arms if arm.goodput), {})
    if asked:
        names = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "end to end"}
        each = [f"{names.get(name, name)} up to {most:,g} ms" for name, most in asked.items()]
        said.append(f"Goodput counts requests with {' and '.join(each)}.")
    if any(arm.savings for arm in results.arms):
        first = "the first arm of a load" if results.kind == "sweep" else "the first arm"
        gpus = results.settings.get("gpus", "")
        hour = results.settings.get("gpu_hour", "")
        text = f"Saved: the prefill that {first} would have needed on top"
        text += f", with {gpus} GPU{'' if gpus == '1' else 's'} a replica" if gpus else ""
        said.append(f"{text}, at {hour} for a GPU's hour." if hour else f"{text}.")
    return said
