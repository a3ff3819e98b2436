"""Several results files as one, where that makes sense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from loadgen.made import Made
from loadgen.results.conclusion import conclude
from loadgen.results.schema import Results, ResultsError

ARMS = frozenset({"name", "policies", "replica", "router", "seed", "url"})
"""Settings that only say which arms there are, and of which arrivals."""


def merged(files: Mapping[str, Results]) -> Results:
    """The arms of all files, by what the files are called, in one; the first file's description and
    settings are the whole's. Arms that are called the same in several files get the file's name in
    front. Savings stay only where they are against the first arm of all.

    Raises ResultsError for files whose arms say nothing about each other: of different commands,
    workloads or settings."""
    (first_name, first), *others = files.items()
    for name, other in others:
        differs = _difference(first, other)
        if differs:
            raise ResultsError(
                f"{name} and {first_name} cannot be one report: {differs}; report them one by one"
            )
    if not others:
        return first
    called = [name for each in files.values() for name in {arm.name for arm in each.arms}]
    twice = {name for name in called if called.count(name) > 1}
    whole = msgspec.structs.replace(
        first, arms=[], differences=[], warnings=[], made=_made(list(files.values()))
    )
    for file, results in files.items():
        shown = {
            arm.name: f"{file}: {arm.name}" if arm.name in twice else arm.name
            for arm in results.arms
        }
        for arm in results.arms:
            savings = arm.savings if results is first else None
            whole.arms.append(msgspec.structs.replace(arm, name=shown[arm.name], savings=savings))
        whole.differences += [
            msgspec.structs.replace(each, baseline=shown[each.baseline], arm=shown[each.arm])
            for each in results.differences
        ]
        whole.warnings += [text for text in results.warnings if text not in whole.warnings]
    whole.conclusion = conclude(whole.arms, whole.differences, whole.axis)
    return whole


def _made(files: Sequence[Results]) -> Made | None:
    """What is known of how they were made; what differs is listed."""
    known = [results.made for results in files if results.made]
    if not known:
        return None
    fields = Made.__struct_fields__
    return Made(*("; ".join(dict.fromkeys(getattr(m, field) for m in known)) for field in fields))


def _difference(first: Results, other: Results) -> str:
    """What keeps two from being one, in words; empty when nothing does."""
    for field in ("kind", "workload", "axis", "simulated"):
        mine, theirs = getattr(first, field), getattr(other, field)
        if mine != theirs:
            return f"{field} is {theirs!r}, not {mine!r}"
    settings = setting_differences(first, other, leave_out=ARMS)
    return settings[0] if settings else ""


def setting_differences(first: Results, other: Results, *, leave_out: frozenset[str]) -> list[str]:
    """Settings that are not the same in both, in words."""
    found = []
    for setting in sorted({*first.settings, *other.settings} - leave_out):
        mine, theirs = (each.settings.get(setting, "not set") for each in (first, other))
        if mine != theirs:
            found.append(f"--{setting.replace('_', '-')} is {theirs}, not {mine}")
    return found
