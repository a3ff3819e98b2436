"""Several workers' sessions and audits as one, and what a window forgets."""

from __future__ import annotations

from router.audit import Auditor
from router.audit.joined import joined, joined_session, joined_sessions
from router.audit.report import SessionStory, audit, session, sessions
from router.audit.window import BUCKET_S, KEPT_S, MOST_FINDINGS
from router.diagnosis.divergence import Change, Divergence
from router.diagnosis.fingerprint import Fingerprint, take
from router.diagnosis.verdict import Diagnosis, ToolResult
from router.prompt import PARSERS
from router.telemetry.record import Finished
from router.types import Load

PROMPT = PARSERS["/v1/chat/completions"](
    b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'
)
NOW = 1_800_000_000.0


def fingerprint() -> Fingerprint:
    return take(
        PROMPT.text, PROMPT.chain, base=None, serial=1, model="m", owner="", arguments=(), at=NOW
    )


def told(
    auditor: Auditor, at: float, *, agent: str = "a", part: str = "system", lost: int = 800
) -> None:
    """A step whose system prompt has another time in it."""
    old = fingerprint()
    found = Diagnosis(fingerprint(), old, Divergence(Change.SYSTEM, part, 64, 64, 2), "s", agent)
    found.lost = {Change.SYSTEM: lost}
    found.reason = Change.SYSTEM
    found.looks_like = "time stamp"
    found.grown, found.results = 400, (ToolResult(100, 7),)
    done = Finished("r", started=at, duration=2.0, slot=0, replica="x", model="m", status=200)
    done.prompt_tokens, done.delivered = 1000, 200
    auditor.take(found, done)


def make(price: float = 0.0) -> Auditor:
    return Auditor(lambda: [Load(prefill_rate=100.0)], lambda: {"x": 60.0}, price)


def test_costs_in_seconds_and_money() -> None:
    auditor = make(price=3.6)
    told(auditor, NOW)
    found = audit(auditor, 3600.0, NOW + 100.0)
    (finding,) = found.findings
    # 800 tokens at 100 a second; 3.6 an hour is 0.001 a second; 100 seconds are covered.
    assert (finding.tokens_lost, finding.gpu_seconds) == (800, 8.0)
    assert finding.money_a_day == 8.0 * 0.001 * 864
    assert audit(make(), 3600.0, NOW).findings == []


def test_workers_are_put_together() -> None:
    one, two = make(price=1.0), make(price=1.0)
    told(one, NOW)
    told(two, NOW + 10.0)
    told(two, NOW + 20.0, agent="b")
    audits = [audit(each, 3600.0, NOW + 60.0) for each in (one, two)]
    both = joined(audits)
    assert both.requests == 3
    assert [(each.agent, each.tokens_lost) for each in both.findings] == [("a", 1600), ("b", 800)]
    tools = both.agents.tool_results
    assert (tools.results, tools.repeats, tools.share_of_growth) == (3, 1, 0.25)
    assert both.agents.hit_rate_by_step == [0.2, 0.2]
    listed = joined_sessions([sessions(each, 10, "", "") for each in (one, two)])
    assert [(each.id, each.steps, each.prompt_tokens) for each in listed.sessions] == [
        ("s", 3, 3000)
    ]
    stories: list[SessionStory] = []
    for each in (two, one):
        story = session(each, "s")
        assert story is not None
        stories.append(story)
    whole = joined_session(stories)
    assert [step.at for step in whole.requests] == [NOW, NOW + 10.0, NOW + 20.0]
    assert whole.requests[2].pause_s == 8.0
    assert (whole.first_seen, whole.last_seen) == (NOW, NOW + 22.0)


def test_windows_and_findings_are_bounded() -> None:
    auditor = make()
    for number in range(2 * MOST_FINDINGS):
        told(auditor, NOW, agent=f"agent {number}")
    found = audit(auditor, 600.0, NOW + 1.0).findings
    assert len(found) == MOST_FINDINGS + 1
    rest = next(each for each in found if each.agent == "other")
    assert rest.requests == MOST_FINDINGS
    # What is older is not told, and in the end not kept.
    told(auditor, NOW + 3 * BUCKET_S)
    assert audit(auditor, BUCKET_S, NOW + 3 * BUCKET_S + 1.0).requests == 1
    for number in range(int(KEPT_S / BUCKET_S)):
        told(auditor, NOW + (4 + number) * BUCKET_S)
    assert auditor.windows.start >= NOW + 3 * BUCKET_S


def test_steps_and_sessions_are_bounded() -> None:
    auditor = make()
    for number in range(500):
        told(auditor, NOW + number)
    story = session(auditor, "s")
    assert story is not None
    assert (story.steps, len(story.requests)) == (500, 100)
    assert len(auditor.sessions) == 1
