"""A comparison in a sentence or two, said from its numbers alone, whichever way they point."""

from __future__ import annotations

from loadgen.results.schema import Arm, Difference

SAME = 0.05
"""Relative differences below this are called the same even when they are certain."""


def conclude(arms: list[Arm], differences: list[Difference], axis: str = "") -> str:
    """What the last arm did against the first; of a sweep, at its highest load. axis: what loads
    are, as in Results."""
    if not arms:
        return "Nothing was measured."
    top = max(arm.load for arm in arms)
    if any(arm.load != top for arm in arms):
        own = [arm for arm in arms if arm.load == top]
        where = f"{top:g} {axis}" if axis else f"load {top:g}"
        return f"At {where}: {conclude(own, [each for each in differences if each.load == top])}"
    if len(arms) < 2:
        return _alone(arms[0])
    base, arm = arms[0], arms[-1]
    if not base.completed or not arm.completed:
        failed = " and ".join(each.name for each in (base, arm) if not each.completed)
        return f"No request of {failed} succeeded, so there is nothing to compare."
    certain = {
        difference.metric: difference
        for difference in differences
        if difference.baseline == base.name and difference.arm == arm.name
    }
    parts = [_reuse(base, arm), _time(base, arm, certain), _throughput(base, arm)]
    text = " ".join(part for part in parts if part)
    return f"{text}{_caveats([base, arm])}"


def _alone(arm: Arm) -> str:
    if not arm.requests:
        return f"No request of {arm.name} was counted: the run was too short for one."
    if not arm.completed:
        return f"No request of {arm.name} succeeded."
    hit = "an unknown share" if arm.hit_rate is None else f"{arm.hit_rate:.0%}"
    return (
        f"{arm.name} reused {hit} of the prompt tokens ({arm.upper_bound:.0%} was possible), TTFT "
        f"p50 {arm.ttft_ms.p50:,.0f} ms, p99 {arm.ttft_ms.p99:,.0f} ms.{_caveats([arm])}"
    )


def _reuse(base: Arm, arm: Arm) -> str:
    if base.hit_rate is None or arm.hit_rate is None:
        return "The engines did not report reused tokens."
    possible = f"{arm.upper_bound:.0%} was possible"
    if abs(arm.hit_rate - base.hit_rate) < 0.01:
        return (
            f"{arm.name} and {base.name} both reused {arm.hit_rate:.0%} of the prompt ({possible})."
        )
    return (
        f"{arm.name} reused {arm.hit_rate:.0%} of the prompt tokens, {base.name} "
        f"{base.hit_rate:.0%} ({possible})."
    )


def _time(base: Arm, arm: Arm, certain: dict[str, Difference]) -> str:
    said = []
    for part, title in (("mean", "on average"), ("p90", "at p90"), ("p99", "at p99")):
        before, after = getattr(base.ttft_ms, part), getattr(arm.ttft_ms, part)
        known = certain.get(f"ttft_ms.{part}")
        unsure = known is not None and known.low <= 0 <= known.high
        said.append(f"{_compared(before, after, unsure)} {title} ({_ms(before)} to {_ms(after)})")
    return f"Its time to the first token was {', '.join(said)}."


def _compared(before: float, after: float, unsure: bool) -> str:
    if unsure:
        return "not clearly different"
    if not before or not after or abs(after - before) < SAME * before:
        return "about the same"
    if after < before:
        return f"{before / after:.1f} times shorter"
    return f"{after / before:.1f} times LONGER"


def _ms(value: float) -> str:
    return f"{value:,.0f} ms"


def _throughput(base: Arm, arm: Arm) -> str:
    before, after = base.throughput.output_tokens_per_s, arm.throughput.output_tokens_per_s
    if not before:
        return ""
    change = after / before - 1
    if abs(change) < SAME:
        return "Throughput was the same."
    return f"Throughput was {abs(change):.0%} {'higher' if change > 0 else 'LOWER'}."


def _caveats(arms: list[Arm]) -> str:
    said = ""
    for arm in arms:
        failed = sum(arm.errors.values())
        if failed:
            said += f" {failed} of {arm.requests} requests of {arm.name} failed."
    late = [arm.name for arm in arms if arm.schedule.behind]
    if late:
        said += f" The load generator fell behind its schedule in {' and '.join(late)}."
    return said
