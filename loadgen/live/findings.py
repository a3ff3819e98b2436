"""What a comparison's runs come to, whether it came to its end or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from loadgen.live.engines import summed
from loadgen.results.bootstrap import ONE_RUN, against_first
from loadgen.results.metrics import balance, mean_balance, summarise
from loadgen.results.records import Records
from loadgen.results.savings import savings
from loadgen.results.schema import Arm, Difference, ReplicaResult, Reuse

if TYPE_CHECKING:
    from loadgen.live.compare import Comparison, Contender

BOUND_ERROR = 0.01
"""How far a hit rate may be above the most possible: prompts are weighed by bytes, and a chat
template is not counted."""


class Found(NamedTuple):
    """The results of a comparison."""

    arms: list[Arm]
    differences: list[Difference]
    warnings: list[str]


class Run(msgspec.Struct):
    """One run of one arm; `whole` once it came to its end."""

    records: Records = msgspec.field(default_factory=Records)
    warnings: list[str] = []
    reuse: Reuse | None = None
    counted: list[ReplicaResult] = []
    """What the engines themselves counted, where the answers do not name the replica."""
    whole: bool = False


Runs = dict[str, list[Run]]
"""By the arm's name, in the order of the repeats."""


def find(comparison: Comparison, loads: Sequence[tuple[float, Runs]]) -> Found:
    """The whole runs of every arm. A run that was cut short is not like the others: it is only an
    arm where there is nothing else."""
    cut = only_cut(loads)
    arms: list[Arm] = []
    differing: list[Difference] = []
    warnings: list[str] = []
    for load, runs in loads:
        warnings += _told(runs) + _left_out(comparison, load, runs, kept=cut)
        own: dict[str, Arm] = {}
        for contender in comparison.contenders:
            kept = [run for run in runs[contender.name] if counts(run, cut=cut)]
            if kept:
                own[contender.name] = summary(comparison, contender, kept, load)
        base = own.get(comparison.contenders[0].name)
        for arm in own.values():
            if base is not None and arm is not base:
                arm.savings = savings(base, arm, comparison.price)
        arms += own.values()
        whole = {name: [run.records for run in own if run.whole] for name, own in runs.items()}
        differing += against_first(whole, load=load)
    warnings += [f"load {load:g} did not run" for load, _ in comparison.plans[len(loads) :]]
    warnings += _judged(arms, sweep=len(comparison.plans) > 1)
    if comparison.repeats == 1 and differing:
        warnings.append(ONE_RUN)
    return Found(arms, differing, list(dict.fromkeys(warnings)))


def only_cut(loads: Sequence[tuple[float, Runs]]) -> bool:
    """No run came to its end."""
    return not any(run.whole for _, runs in loads for own in runs.values() for run in own)


def counts(run: Run, *, cut: bool) -> bool:
    """A run is part of what was found; cut: there are only such that were cut short."""
    return run.whole or (cut and answered(run))


def answered(run: Run) -> bool:
    """Whether the run got at least one answer."""
    return any(reason == 0 for reason in run.records.reason)


def _told(runs: Runs) -> list[str]:
    return [f"{name}: {text}" for name, own in runs.items() for run in own for text in run.warnings]


def _left_out(comparison: Comparison, load: float, runs: Runs, *, kept: bool) -> list[str]:
    """What of a load did not run to its end."""
    at = f" at {load:g}" if len(comparison.plans) > 1 else ""
    said = []
    for name, own in runs.items():
        whole = sum(run.whole for run in own)
        if whole == comparison.repeats:
            continue
        if whole:
            said.append(f"{name}{at}: only {whole} of {comparison.repeats} runs came to their end")
        elif any(answered(run) for run in own):
            then = "these are its answers until then" if kept else "its answers are left out"
            said.append(f"{name}{at} was cut short: {then}")
        else:
            said.append(f"{name}{at} did not run")
    return said


def _judged(arms: Sequence[Arm], *, sweep: bool) -> list[str]:
    """What must be known of the arms before they are believed."""
    said = []
    late = list(dict.fromkeys(arm.name for arm in arms if arm.schedule.behind))
    if late:
        said.append(
            f"the load generator fell behind its schedule ({', '.join(late)}): the load was lower "
            "than asked for; use a lower rate or a faster machine"
        )
    for arm in arms:
        if arm.hit_rate is not None and arm.hit_rate > arm.upper_bound + BOUND_ERROR:
            at = f" at {arm.load:g}" if sweep else ""
            said.append(
                f"{arm.name}{at}: the hit rate ({arm.hit_rate:.1%}) is above the most possible "
                f"({arm.upper_bound:.1%}): caches were warm from earlier requests"
            )
    return said


def summary(comparison: Comparison, contender: Contender, runs: Sequence[Run], load: float) -> Arm:
    """Summarises the runs of one arm; there is at least one."""
    names = comparison.fleet.names
    told = {name for run in runs for name in run.records.replicas.names if name}
    # A router may know its replicas by names of its own, or not tell them at all.
    routed = contender.url or not comparison.fleet.reset
    count = len(names) if comparison.fleet.reset else 0
    if not told <= set(names) or (routed and not told):
        names = []
    arm = summarise(
        contender.name,
        *(run.records for run in runs),
        objectives_ms=comparison.objectives_ms,
        replicas=names,
        count=count,
        load=load,
    )
    if not arm.replicas and all(run.counted for run in runs):
        arm.replicas = summed([run.counted for run in runs])
        arm.balance = mean_balance([balance(run.counted) for run in runs])
    reused = [run.reuse for run in runs if run.reuse is not None]
    if reused:
        arm.reuse = Reuse(
            *(sum(getattr(each, field) for each in reused) for field in Reuse.__struct_fields__)
        )
    return arm
