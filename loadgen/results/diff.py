"""Two results files, before and after, with intervals for what changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from loadgen.results.bootstrap import differences
from loadgen.results.conclusion import conclude
from loadgen.results.merge import ARMS, setting_differences
from loadgen.results.samples import records_of
from loadgen.results.schema import Arm, Difference, Results, ResultsError

BEFORE, AFTER = "before", "after"
_LESS_IS_BETTER = ("ttft_ms", "e2e_ms")


def diff(before: Results, after: Results) -> Results:
    """Arms of the same name and load, or the only ones there are, beside each other. Raises
    ResultsError where nothing can be compared."""
    pairs = list(_pairs(before, after))
    if not pairs:
        told = "; ".join(", ".join(sorted({arm.name for arm in r.arms})) for r in (before, after))
        raise ResultsError(f"no arm of one is in the other: they have {told}")
    other = setting_differences(before, after, leave_out=ARMS - {"seed"})
    same = before.workload == after.workload and not other
    arms: list[Arm] = []
    found: list[Difference] = []
    warnings = []
    for one, two in pairs:
        called = f"{one.name}" if one.name == two.name else f"{one.name}, {two.name}"
        names = [f"{when} ({called})" if len(pairs) > 1 else when for when in (BEFORE, AFTER)]
        shown = [
            msgspec.structs.replace(arm, name=name, savings=None)
            for arm, name in zip((one, two), names, strict=True)
        ]
        arms += shown
        if one.sample is None or two.sample is None:
            warnings.append(
                f"{called}: a file of an older version has no requests in it, so there are no "
                "intervals"
            )
            continue
        runs = [records_of(arm.sample) for arm in (one, two) if arm.sample]
        if all(runs):
            paired = same and len(runs[0]) == len(runs[1])
            found += differences(
                (names[0], runs[0]), (names[1], runs[1]), load=one.load, paired=paired
            )
    warnings += _warnings(before, after, other)
    return Results(
        kind="diff",
        workload=before.workload if same else f"{before.workload} and {after.workload}",
        arms=arms,
        axis=before.axis,
        simulated=before.simulated and after.simulated,
        description=_described(before, after, paired=same),
        differences=found,
        warnings=warnings,
        conclusion=conclude(arms[:2], [each for each in found if each.arm == arms[1].name]),
    )


def _pairs(before: Results, after: Results) -> Iterator[tuple[Arm, Arm]]:
    if len(before.arms) == len(after.arms) == 1:
        yield before.arms[0], after.arms[0]
        return
    known = {(arm.name, arm.load): arm for arm in after.arms}
    for arm in before.arms:
        other = known.get((arm.name, arm.load))
        if other is not None:
            yield arm, other


def _described(before: Results, after: Results, *, paired: bool) -> str:
    how = (
        "The same sessions in both, so intervals are of the differences within sessions."
        if paired
        else "Not the same sessions, so intervals cover what differs from session to session."
    )
    parts = []
    for when, results in ((BEFORE, before), (AFTER, after)):
        if results.made:
            parts.append(f"{when}: version {results.made.version} of {results.made.date}")
    return f"{'; '.join(parts)}. {how}" if parts else how


def _warnings(before: Results, after: Results, other: Sequence[str]) -> list[str]:
    said = [f"not the same: {each}" for each in other]
    if before.made and after.made:
        for field in ("machine", "engine", "model"):
            one, two = getattr(before.made, field), getattr(after.made, field)
            if one != two:
                said.append(f"not the same {field}: {one or 'not told'}, then {two or 'not told'}")
    if before.workload != after.workload:
        said.append(f"not the same workload: {before.workload}, then {after.workload}")
    return said


def worse(results: Results) -> list[Difference]:
    """Differences that are certain, and for the worse."""
    found = []
    for each in results.differences:
        less = each.metric.startswith(_LESS_IS_BETTER)
        if (each.low > 0) if less else (each.high < 0):
            found.append(each)
    return found
