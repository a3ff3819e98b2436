"""What the admin port tells of the audit: docs/reference/admin.md describes the fields."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

import msgspec

from router.audit.auditor import Auditor
from router.audit.mends import mend
from router.audit.sessions import Session, Step
from router.audit.window import PAUSES_S, Cost, Kind, Window
from router.diagnosis.verdict import ELSEWHERE, EVICTED

DAY_S: Final = 86_400.0
MOST_SHOWN: Final = 500
"""Sessions and findings in one answer."""


class SessionRow(msgspec.Struct):
    """A session in the list."""

    id: str
    model: str
    tenant: str
    agent: str
    steps: int
    first_seen: float
    last_seen: float
    prompt_tokens: int
    cached_tokens: int
    replicas: list[str]


class SessionStory(SessionRow):
    """A session with its latest steps, the oldest first."""

    requests: list[Step]


class SessionList(msgspec.Struct):
    """The answer of /sessions."""

    sessions: list[SessionRow]


class Finding(msgspec.Struct):
    """Something that costs tokens, and what mends it."""

    kind: str
    part: str
    looks_like: str
    agent: str
    tenant: str
    model: str
    requests: int
    tokens_lost: int
    gpu_seconds: float
    """Of the replicas' prefill, at the speed that was measured of them."""
    money_a_day: float | None
    """None without a price (`replica_hour_price`)."""
    mend: str


class ToolReport(msgspec.Struct):
    """Tool results. Sizes in canonical bytes, about four to a token."""

    results: int
    mean_bytes: float
    largest_bytes: int
    share_of_growth: float | None
    """Of what steps added; None before the first step."""
    repeats: int
    """Results that their session had seen before."""
    repeated_bytes: int


class PauseRow(msgspec.Struct):
    """Steps that came after a pause of at most this length, and more than the row before."""

    up_to_s: float | None
    """None for the last row."""
    resumed: int
    gone: int
    tokens_lost: int


class PauseReport(msgspec.Struct):
    """Pauses of sessions against the time that caches hold what they have."""

    resumed: int
    gone: int
    """Of them, those that found it gone."""
    tokens_lost: int
    rows: list[PauseRow]
    holds_s: dict[str, float | None]
    """Replica -> age of what was used least lately in its cache, as the index models it; None
    while the cache is not full, so that nothing is evicted."""
    larger_cache_tokens: int
    """Tokens that a larger KV cache or an offload tier would have kept."""
    sticky_wait_tokens: int
    """Tokens that waiting for the replica that held them would have saved."""


class Agents(msgspec.Struct):
    """What sessions do, all together."""

    hit_rate_by_step: list[float | None]
    """The first, the second, ...; the last stands for all that follow."""
    tool_results: ToolReport
    pauses: PauseReport


class Audit(msgspec.Struct):
    """The answer of /audit."""

    since_s: float
    """The time that it covers."""
    requests: int
    findings: list[Finding]
    """The dearest first."""
    agents: Agents


def _row(session: Session) -> SessionRow:
    return SessionRow(
        session.id,
        session.model,
        session.tenant,
        session.agent,
        session.steps,
        session.first_seen,
        session.last_seen,
        session.prompt_tokens,
        session.cached_tokens,
        list(session.replicas),
    )


def sessions(auditor: Auditor, limit: int, model: str, tenant: str) -> SessionList:
    """The latest sessions, newest first; of one model or tenant where that is given."""

    def found() -> Iterator[SessionRow]:
        for session in auditor.sessions.latest():
            if model in ("", session.model) and tenant in ("", session.tenant):
                yield _row(session)

    return SessionList(list(islice(found(), max(0, min(limit, MOST_SHOWN)))))


def session(auditor: Auditor, name: str) -> SessionStory | None:
    """One session; None where it is not, or no longer, known."""
    found = auditor.sessions.get(name)
    if found is None:
        return None
    row = msgspec.structs.asdict(_row(found))
    return SessionStory(**row, requests=list(found.requests))


def audit(auditor: Auditor, since_s: float, now: float) -> Audit:
    """What was found in the last so many seconds. now: Unix time."""
    window = auditor.windows.since(now - since_s)
    covered = max(1.0, min(since_s, now - auditor.windows.start)) if window.requests else since_s
    found = [_finding(kind, cost, covered, auditor.price) for kind, cost in window.findings.items()]
    found.sort(key=lambda each: each.tokens_lost, reverse=True)
    rates = [
        round(cached / prompt, 4) if prompt else None
        for prompt, cached in zip(window.prompt, window.cached, strict=True)
    ]
    while len(rates) > 1 and rates[-1] is None:
        rates.pop()
    agents = Agents(rates, _tools(window), _pauses(window, auditor))
    return Audit(round(covered, 1), window.requests, found[:MOST_SHOWN], agents)


def _finding(kind: Kind, cost: Cost, covered: float, price: float) -> Finding:
    money = cost.seconds / 3600.0 * price * DAY_S / covered if price else None
    return Finding(
        kind.kind,
        kind.part,
        kind.looks_like,
        kind.agent,
        kind.tenant,
        kind.model,
        cost.requests,
        cost.tokens,
        round(cost.seconds, 3),
        None if money is None else round(money, 4),
        mend(kind.kind, kind.looks_like),
    )


def _tools(window: Window) -> ToolReport:
    tools = window.tools
    return ToolReport(
        tools.results,
        round(tools.bytes / tools.results, 1) if tools.results else 0.0,
        tools.largest,
        round(tools.bytes / tools.grown_bytes, 4) if tools.grown_bytes else None,
        tools.repeats,
        tools.repeated_bytes,
    )


def _pauses(window: Window, auditor: Auditor) -> PauseReport:
    rows = [
        PauseRow(None if edge == float("inf") else edge, each.resumed, each.gone, each.tokens)
        for edge, each in zip(PAUSES_S, window.pauses, strict=True)
    ]
    tokens = {EVICTED: 0, ELSEWHERE: 0}
    for kind, cost in window.findings.items():
        if kind.kind in tokens:
            tokens[kind.kind] += cost.tokens
    return PauseReport(
        sum(row.resumed for row in rows),
        sum(row.gone for row in rows),
        sum(row.tokens_lost for row in rows),
        rows,
        auditor.holds(),
        tokens[EVICTED],
        tokens[ELSEWHERE],
    )
