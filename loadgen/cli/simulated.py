"""The simulate command: the options of a comparison, answered in virtual time."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import msgspec

from loadgen.cli import options as opts
from loadgen.cli.values import OptionsError, counts, names, sentence
from loadgen.live.compare import RunObserver, results_of
from loadgen.results.bootstrap import ONE_RUN, against_first
from loadgen.results.export import RunRecords
from loadgen.results.offered import shortfall
from loadgen.results.savings import savings
from loadgen.results.schema import REPLICAS, Arm, Difference, Results
from loadgen.simulate import ArmRun, arm_of, arms_of, arrangement, prepare, run_once
from loadgen.workloads import Closed, Plan
from router.config.units import parse_duration
from router.prompt.spans import SPANS


class Point(msgspec.Struct, frozen=True):
    """One load of a sweep, or the only one."""

    load: float
    plan: Plan
    replicas: int


class Simulation:
    """A simulation under way. What it has found can be had at any time, so that nothing is lost
    when a later run fails or all is stopped."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Raises ValueError for options that make no sense."""
        self._args = args
        self._params = opts.engine_from(args)
        chosen = names(args.policies, "--policies")
        self._prefill: int = args.prefill or 0
        self._arrangements = [
            each for name in chosen for each in arms_of(arrangement(name), self._prefill)
        ]
        self._objectives = opts.objectives_from(args)
        self._sync = _sync(args.sync)
        self._axis, self._points = _points(args)
        self._assumed = opts.assumptions_from([(each.load, each.plan) for each in self._points])
        self._runs: list[dict[str, list[ArmRun]]] = []

    def run(self, stage: RunObserver) -> None:
        """Run everything. The first policy is the baseline. Raises ValueError for a trace that
        cannot be read."""
        args = self._args
        for point in self._points:
            runs: dict[str, list[ArmRun]] = {each.name: [] for each in self._arrangements}
            self._runs.append(runs)
            for repeat in range(args.repeats):
                seed = point.plan.seed + repeat
                plan = msgspec.structs.replace(point.plan, seed=seed)
                prepared = prepare(plan, self._params.block_size, SPANS, keys=True)
                for each in self._arrangements:
                    shown = point.load if len(self._points) > 1 else 0.0
                    stage.started(each.name, shown, repeat, plan)
                    run = run_once(
                        prepared,
                        each,
                        [self._params] * (point.replicas + self._prefill),
                        prefill=self._prefill,
                        routers=args.routers,
                        sync=self._sync,
                        seed=seed,
                    )
                    runs[each.name].append(run)
                    stage.ended(self._arm(point, each.name, [run]))

    def results(self) -> Results:
        """Everything of which at least one run has ended."""
        args = self._args
        price = opts.price_from(args, self._params)
        arms: list[Arm] = []
        found: list[Difference] = []
        warnings: list[str] = []
        offered: list[tuple[Plan, list[Arm]]] = []
        for point, runs in zip(self._points, self._runs, strict=False):
            own = [self._arm(point, name, each) for name, each in runs.items() if each]
            for arm in own[1:]:
                arm.savings = savings(own[0], arm, price)
            arms += own
            offered.append((point.plan, own))
            records = {name: [run.records for run in each] for name, each in runs.items()}
            found += against_first(records, load=point.load)
        warnings += self._left_out()
        warnings += self._refused(arms)
        warnings += shortfall(offered)
        if args.repeats == 1 and found:
            warnings.append(ONE_RUN)
        count = f"{self._points[0].replicas} replicas" if self._axis != REPLICAS else "Replicas"
        if self._prefill:
            count += f" and {self._prefill} that prefill for them, or all alike,"
        return results_of(
            args.workload,
            arms,
            found,
            warnings,
            kind="simulate" if len(self._points) == 1 else "sweep",
            axis=self._axis,
            simulated=True,
            description=" ".join(
                (
                    f"{count} ({self._params.name}: {self._params.origin}), in virtual time.",
                    *map(sentence, self._assumed),
                )
            ),
            settings=opts.settings_from(args),
        )

    def records(self) -> Iterator[RunRecords]:
        """Of every run that ended."""
        for point, runs in zip(self._points, self._runs, strict=False):
            for name, own in runs.items():
                for repeat, run in enumerate(own):
                    yield RunRecords(name, point.load, repeat, run.records)

    @property
    def engine(self) -> str:
        """What was simulated."""
        return f"simulated {self._params.name}: {self._params.origin}"

    @property
    def begun(self) -> bool:
        """Some run has ended."""
        return any(each for runs in self._runs for each in runs.values())

    def _arm(self, point: Point, name: str, runs: Sequence[ArmRun]) -> Arm:
        return arm_of(
            name,
            runs,
            replicas=point.replicas + self._prefill,
            objectives_ms=self._objectives,
            load=point.load,
        )

    def _left_out(self) -> list[str]:
        """What did not run to its end."""
        said = []
        for number, point in enumerate(self._points):
            runs = self._runs[number] if number < len(self._runs) else {}
            at = f" at {point.load:g} {self._axis}" if len(self._points) > 1 else ""
            for each in self._arrangements:
                ended = len(runs.get(each.name, ()))
                if not ended:
                    said.append(f"{each.name}{at} did not run")
                elif ended < self._args.repeats:
                    said.append(f"{each.name}{at}: only {ended} of {self._args.repeats} runs ended")
        return said

    def _refused(self, arms: Sequence[Arm]) -> list[str]:
        refused = max((arm.errors.get("too_long", 0) for arm in arms), default=0)
        if not refused:
            return []
        shorter = "make them shorter with --set"
        workload = self._points[0].plan.workload
        if "most_tokens" in getattr(type(workload), "__struct_fields__", ()):
            shorter += " most_tokens=N"
        return [
            f"{refused:,} requests of an arm were refused: longer, answer included, than the "
            f"{self._params.longest:,} tokens an engine takes ({self._params.name}); {shorter} or "
            "take another --preset"
        ]


def _points(args: argparse.Namespace) -> tuple[str, list[Point]]:
    axis, plans = opts.plans_from(args, whole=True)
    fleets = counts(args.replicas, "--replicas")
    if len(plans) > 1 and len(fleets) > 1:
        raise OptionsError(
            f"--replicas {args.replicas}: a sweep varies one thing at a time; give one number of "
            f"replicas, or one of {axis}"
        )
    points: list[Point] = []
    for load, plan in plans:
        if isinstance(plan.arrivals, Closed) and not plan.requests:
            raise OptionsError("a simulated closed loop needs --requests to end")
        many = len(fleets) > 1
        points += [Point(float(fleet) if many else load, plan, fleet) for fleet in fleets]
    return REPLICAS if len(fleets) > 1 else axis, points


def _sync(text: str) -> float | None:
    if text in ("never", "none"):
        return None
    try:
        return parse_duration(text)
    except ValueError:
        why = f"--sync {text!r}: write a duration such as 20ms, or none"
        raise OptionsError(why) from None
