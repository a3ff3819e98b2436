"""Several workers' audits as one."""

from __future__ import annotations

from collections.abc import Sequence

from router.audit.report import (
    Agents,
    Audit,
    Finding,
    PauseReport,
    PauseRow,
    SessionList,
    SessionRow,
    SessionStory,
    ToolReport,
)


def joined_sessions(lists: Sequence[SessionList]) -> SessionList:
    """The sessions of all workers, the newest first: what one did in several, together."""
    found: dict[str, SessionRow] = {}
    for row in (row for each in lists for row in each.sessions):
        known = found.setdefault(row.id, row)
        if known is not row:
            _join(known, row)
    rows = sorted(found.values(), key=lambda row: row.last_seen, reverse=True)
    return SessionList(rows)


def joined_session(stories: Sequence[SessionStory]) -> SessionStory:
    """What one session did in several workers, at least one."""
    first, *others = stories
    for other in others:
        _join(first, other)
        first.requests += other.requests
    first.requests.sort(key=lambda step: step.at)
    return first


def _join(known: SessionRow, more: SessionRow) -> None:
    known.steps += more.steps
    known.prompt_tokens += more.prompt_tokens
    known.cached_tokens += more.cached_tokens
    known.first_seen = min(known.first_seen, more.first_seen)
    known.last_seen = max(known.last_seen, more.last_seen)
    known.replicas += [name for name in more.replicas if name not in known.replicas]


def joined(audits: Sequence[Audit]) -> Audit:
    """The audits of all workers, at least one. Rates of steps are means weighed by requests, since
    workers tell no tokens of them."""
    findings: dict[tuple[str, ...], Finding] = {}
    for each in (each for audit in audits for each in audit.findings):
        key = (each.kind, each.part, each.looks_like, each.agent, each.tenant, each.model)
        known = findings.get(key)
        if known is None:
            findings[key] = each
            continue
        known.requests += each.requests
        known.tokens_lost += each.tokens_lost
        known.gpu_seconds += each.gpu_seconds
        if known.money_a_day is not None and each.money_a_day is not None:
            known.money_a_day += each.money_a_day
    ordered = sorted(findings.values(), key=lambda each: each.tokens_lost, reverse=True)
    agents = Agents(
        _rates(audits),
        _tools([audit.agents.tool_results for audit in audits]),
        _pauses([audit.agents.pauses for audit in audits]),
    )
    longest = max(audit.since_s for audit in audits)
    return Audit(longest, sum(audit.requests for audit in audits), ordered, agents)


def _rates(audits: Sequence[Audit]) -> list[float | None]:
    longest = max(len(audit.agents.hit_rate_by_step) for audit in audits)
    found: list[float | None] = []
    for step in range(longest):
        total = weight = 0.0
        for audit in audits:
            rates = audit.agents.hit_rate_by_step
            rate = rates[step] if step < len(rates) else None
            if rate is not None:
                total += rate * audit.requests
                weight += audit.requests
        found.append(round(total / weight, 4) if weight else None)
    return found


def _tools(reports: Sequence[ToolReport]) -> ToolReport:
    results = sum(each.results for each in reports)
    size = sum(each.mean_bytes * each.results for each in reports)
    grown = sum(
        each.mean_bytes * each.results / each.share_of_growth
        for each in reports
        if each.share_of_growth
    )
    return ToolReport(
        results,
        round(size / results, 1) if results else 0.0,
        max(each.largest_bytes for each in reports),
        round(size / grown, 4) if grown else None,
        sum(each.repeats for each in reports),
        sum(each.repeated_bytes for each in reports),
    )


def _pauses(reports: Sequence[PauseReport]) -> PauseReport:
    rows = [
        PauseRow(
            same[0].up_to_s,
            sum(row.resumed for row in same),
            sum(row.gone for row in same),
            sum(row.tokens_lost for row in same),
        )
        for same in zip(*(each.rows for each in reports), strict=True)
    ]
    return PauseReport(
        sum(each.resumed for each in reports),
        sum(each.gone for each in reports),
        sum(each.tokens_lost for each in reports),
        rows,
        # Workers share what they know of the caches.
        reports[0].holds_s,
        sum(each.larger_cache_tokens for each in reports),
        sum(each.sticky_wait_tokens for each in reports),
    )
