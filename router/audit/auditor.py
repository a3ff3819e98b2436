"""Takes in each diagnosed request at its end."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from router.audit.mends import VOLATILE
from router.audit.sessions import MOST_RESULTS, Changed, Session, Sessions, Step
from router.audit.window import PAUSES_S, STEPS, Kind, Window, Windows
from router.diagnosis.divergence import Change
from router.diagnosis.looks import REASONED, SUMMARY, TEXT, WORDS
from router.diagnosis.verdict import EVICTED, LOST, Diagnosis
from router.telemetry.record import Finished
from router.types import Load

SHOWN_STEPS: Final = 10
"""Steps told apart in metrics."""
_MOST_REPLICAS: Final = 16
_AT_FRONT: Final = (Change.SYSTEM, Change.TOOLS)
_OWN_WORDS: Final = frozenset((REASONED, SUMMARY, TEXT, ""))


class Rates(Protocol):
    """The replicas' loads, by slot: `router.types.Load`."""

    def __call__(self) -> Sequence[Load]: ...


class Auditor:
    """One for each router; called from the event loop's thread only. Its mutable state: the latest
    sessions, the windows of the last day, and the counts behind the metrics."""

    def __init__(
        self,
        loads: Rates,
        holds: Callable[[], dict[str, float | None]],
        price: float = 0.0,
    ) -> None:
        """loads: for how fast a replica computes. holds: replica -> seconds for which its cache
        keeps what is not used, None while it is not full. price: of an hour of a replica."""
        self.sessions = Sessions()
        self.windows = Windows()
        self.holds = holds
        self.price = price
        self._loads = loads
        self.step_prompt = [0] * SHOWN_STEPS
        self.step_cached = [0] * SHOWN_STEPS
        self.tool_bytes = {"new": 0, "repeated": 0}
        """Canonical bytes of tool results, by whether the session had seen them before."""
        self.resumed = {"kept": 0, "gone": 0}
        """Steps that went on with a prompt, by whether what it computed was still there."""
        self.volatile = {word: 0 for word in WORDS if word not in _OWN_WORDS}
        """What stands at the place -> prompt tokens computed again for it."""

    def take(self, diagnosis: Diagnosis, done: Finished) -> None:
        """A request is over."""
        window = self.windows.now(done.started)
        window.requests += 1
        session = self.sessions.of(
            diagnosis.session, done.model, done.tenant, diagnosis.agent, done.started
        )
        self._count_step(window, session, done)
        self._count_pause(window, session, diagnosis, done)
        if diagnosis.grown or diagnosis.results:
            self._count_growth(window, session, diagnosis)
        if diagnosis.lost:
            self._count_losses(window, diagnosis, done)

    def _count_step(self, window: Window, session: Session, done: Finished) -> None:
        tokens, cached = done.prompt_tokens, done.delivered
        session.steps += 1
        session.prompt_tokens += tokens
        if done.replica not in session.replicas and len(session.replicas) < _MOST_REPLICAS:
            session.replicas.append(done.replica)
        if cached < 0:
            return
        session.cached_tokens += cached
        step = session.steps - 1
        window.prompt[min(step, STEPS - 1)] += tokens
        window.cached[min(step, STEPS - 1)] += cached
        shown = min(step, SHOWN_STEPS - 1)
        self.step_prompt[shown] += tokens
        self.step_cached[shown] += cached

    def _count_pause(
        self, window: Window, session: Session, diagnosis: Diagnosis, done: Finished
    ) -> None:
        pause = done.started - session.ended if session.ended else None
        divergence = diagnosis.divergence
        changed = None
        if divergence is not None and divergence.part and divergence.change != Change.NEW:
            changed = Changed(divergence.part, divergence.place)
        elif divergence is not None and divergence.change == Change.NONE and pause is not None:
            gone = diagnosis.lost.get(EVICTED, 0) + diagnosis.lost.get(LOST, 0)
            counts = window.pauses[bisect_left(PAUSES_S, max(0.0, pause))]
            counts.resumed += 1
            counts.gone += bool(gone)
            counts.tokens += gone
            self.resumed["gone" if gone else "kept"] += 1
        session.requests.append(
            Step(
                done.started,
                done.request_id,
                done.prompt_tokens,
                done.delivered if done.delivered >= 0 else None,
                done.replica,
                pause,
                diagnosis.tool,
                diagnosis.reason,
                diagnosis.missed,
                changed,
            )
        )
        session.last_seen = session.ended = done.started + done.duration

    def _count_growth(self, window: Window, session: Session, diagnosis: Diagnosis) -> None:
        tools, seen = window.tools, session.results
        tools.grown_bytes += diagnosis.grown
        for result in diagnosis.results:
            size = result.size
            tools.results += 1
            tools.bytes += size
            tools.largest = max(tools.largest, size)
            if result.digest in seen:
                tools.repeats += 1
                tools.repeated_bytes += size
                self.tool_bytes["repeated"] += size
                continue
            self.tool_bytes["new"] += size
            if len(seen) < MOST_RESULTS:
                seen.add(result.digest)

    def _count_losses(self, window: Window, diagnosis: Diagnosis, done: Finished) -> None:
        loads = self._loads()
        rate = loads[done.slot].prefill_rate if 0 <= done.slot < len(loads) else 0.0
        divergence = diagnosis.divergence
        for reason, tokens in diagnosis.lost.items():
            part = looks_like = ""
            kind = reason
            if divergence is not None and reason == divergence.change:
                part, looks_like = family_part(divergence.part), diagnosis.looks_like
                if looks_like not in _OWN_WORDS and (reason in _AT_FRONT or part == "message 1"):
                    kind = VOLATILE
                    self.volatile[looks_like] += tokens
            about = Kind(kind, part, looks_like, diagnosis.agent, done.tenant, done.model)
            window.add(about, tokens, tokens / rate if rate else 0.0)


def family_part(part: str) -> str:
    """A part without its numbers, so that findings are few: the first message, or a later one."""
    words = part.split()
    if words[:1] != ["message"]:
        return part
    if words[1] == "1":
        return "message 1"
    rest = " ".join(word for word in words[2:] if not word.isdigit())
    return f"later messages ({rest})" if rest and rest != "part" else "later messages"
