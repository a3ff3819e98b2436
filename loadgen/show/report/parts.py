"""Results taken apart: arms that can be compared with each other, and what those are called."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loadgen.results.schema import RATE, SESSIONS, SPEED, Arm, Difference, Results


class Part(msgspec.Struct, frozen=True):
    """Arms under the same load; the first is the baseline."""

    load: float
    arms: list[Arm]
    differences: list[Difference]

    def difference(self, arm: Arm, metric: str) -> Difference | None:
        """Of an arm to the baseline, when an interval was computed for it."""
        base = self.arms[0].name
        for each in self.differences:
            if (each.metric, each.arm, each.baseline) == (metric, arm.name, base):
                return each
        return None


def parts(results: Results) -> list[Part]:
    """One for each load of a sweep, the lowest first; of anything else just one."""
    if results.kind != "sweep":
        return [Part(0.0, results.arms, results.differences)] if results.arms else []
    loads = sorted({arm.load for arm in results.arms})
    return [
        Part(
            load,
            [arm for arm in results.arms if arm.load == load],
            [each for each in results.differences if each.load == load],
        )
        for load in loads
    ]


def axis(results: Results) -> str:
    """What the loads of a sweep are, with their unit."""
    if results.axis:
        return results.axis
    return SESSIONS if results.settings.get("concurrency") else RATE


def at(results: Results, load: float) -> str:
    """A load in words, such as 40 requests/s."""
    return f"{load:g} {axis(results)}"


def few(found: Sequence[Part], most: int) -> list[Part]:
    """The first and the last, and evenly chosen ones between them; most is at least 2."""
    if len(found) <= most:
        return list(found)
    return [found[round(place * (len(found) - 1) / (most - 1))] for place in range(most)]


def names(results: Results) -> list[str]:
    """The names of the arms, each once and in order."""
    return list(dict.fromkeys(arm.name for arm in results.arms))


def families(results: Results) -> list[Results]:
    """A report's cases, named WORKLOAD LOAD: ARM, as a sweep for each workload, so that an arm is
    called the same in all of them."""
    found: dict[str, Results] = {}
    for arm in results.arms:
        family, load, name = _split(arm.name)
        unit = SPEED if load.startswith("x") else RATE
        sweep = found.setdefault(family, Results("sweep", family, [], axis=unit))
        sweep.arms.append(msgspec.structs.replace(arm, name=name))
    for each in results.differences:
        family, _, name = _split(each.arm)
        if family in found:
            base = _split(each.baseline)[2]
            renamed = msgspec.structs.replace(each, arm=name, baseline=base)
            found[family].differences.append(renamed)
    return list(found.values())


def _split(name: str) -> tuple[str, str, str]:
    case, _, arm = name.rpartition(": ")
    family, _, load = case.rpartition(" ")
    return family, load, arm
