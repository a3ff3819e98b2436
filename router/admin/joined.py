"""Several workers' answers about the fleet, the queue and the policies as one.

Workers share what replicas hold and have to do. Each worker counts the requests that it served.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from router.admin.console_data import Decision, OverflowReport, Policies, QueueReport, Waiting
from router.admin.replicas import Faults, ReplicaReport


def joined_replicas(answers: Sequence[Sequence[ReplicaReport]]) -> list[ReplicaReport]:
    """Each replica once, in the order of the first worker, at least one. Percentiles of TTFT are
    means of the workers' own, weighed by requests."""
    found: dict[str, list[ReplicaReport]] = {}
    for answer in answers:
        for report in answer:
            found.setdefault(report.name, []).append(report)
    return [_replica(reports) for reports in found.values()]


def _replica(reports: Sequence[ReplicaReport]) -> ReplicaReport:
    """What the workers say of one replica: what each counts is added, the rest is the first's."""
    made = reports[0]
    prompts = [report.prompt_tokens for report in reports]
    rates = [report.request_rate for report in reports]
    made.hit_rate = _mean([report.hit_rate for report in reports], prompts)
    made.available_rate = _mean([report.available_rate for report in reports], prompts)
    made.hit_rate_recent = _mean([report.hit_rate_recent for report in reports], prompts)
    made.error_share = _mean([report.error_share for report in reports], rates)
    made.ttft_p50 = _mean([report.ttft_p50 for report in reports], rates)
    made.ttft_p95 = _mean([report.ttft_p95 for report in reports], rates)
    made.prompt_tokens = sum(prompts)
    made.request_rate = sum(rates)
    made.requests = sum(report.requests for report in reports)
    made.errors = sum(report.errors for report in reports)
    made.breaker_opens = sum(report.breaker_opens for report in reports)
    made.faults = Faults(
        *(
            sum(getattr(report.faults, name) for report in reports)
            for name in Faults.__struct_fields__
        )
    )
    # A worker whose breaker is open sends nothing there: that is what somebody looks for.
    made.breaker = next((r.breaker for r in reports if r.breaker != "closed"), made.breaker)
    # Each worker knows what it sent itself and what the engine's metrics say.
    made.adapters_loaded = list(
        dict.fromkeys(name for report in reports for name in report.adapters_loaded)
    )
    made.adapters_with_requests = sorted(
        {name for report in reports for name in report.adapters_with_requests}
    )
    made.usable = all(report.usable for report in reports)
    return made


def _mean(values: Iterable[float | None], weights: Sequence[float]) -> float | None:
    """The mean of those that are known, weighed; None where nothing is."""
    known = [
        (value, weight)
        for value, weight in zip(values, weights, strict=True)
        if value is not None and weight > 0
    ]
    whole = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / whole if whole else None


def joined_queue(answers: Sequence[QueueReport]) -> QueueReport:
    """Who waits at any worker, at least one. Every worker counts the sessions of all."""
    waiting: dict[tuple[str, str], int] = {}
    outcomes: dict[str, int] = {}
    wanted: dict[str, float] = {}
    for answer in answers:
        for each in answer.waiting:
            key = each.priority, each.where
            waiting[key] = waiting.get(key, 0) + each.requests
        for name, number in answer.outcomes.items():
            outcomes[name] = outcomes.get(name, 0) + number
        for name, share in answer.kv_wanted.items():
            wanted[name] = max(wanted.get(name, 0.0), share)
    return QueueReport(
        [Waiting(priority, where, number) for (priority, where), number in waiting.items()],
        outcomes,
        max(answer.sessions_active for answer in answers),
        max(answer.sessions_idle for answer in answers),
        sum(answer.work_seconds for answer in answers),
        wanted,
        [_target(same) for same in zip(*(answer.overflow for answer in answers), strict=False)],
    )


def _target(reports: Sequence[OverflowReport]) -> OverflowReport:
    """What the workers say of one overflow target: they have one budget."""
    made = reports[0]
    made.spent = max(report.spent for report in reports)
    made.breaker = next((r.breaker for r in reports if r.breaker != "closed"), made.breaker)
    made.requests = {
        why: sum(report.requests.get(why, 0) for report in reports) for why in made.requests
    }
    made.failed = sum(report.failed for report in reports)
    return made


def joined_policies(answers: Sequence[Policies]) -> Policies:
    """The decisions of all workers, at least one."""
    decisions: dict[tuple[str, str], int] = {}
    for answer in answers:
        for each in answer.decisions:
            key = each.policy, each.reason
            decisions[key] = decisions.get(key, 0) + each.requests
    rows = [Decision(policy, reason, number) for (policy, reason), number in decisions.items()]
    rows.sort(key=lambda each: -each.requests)
    return Policies(answers[0].live, answers[0].weights, rows)
