"""What is counted of a stretch of time, so that any time back from now can be asked for."""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

BUCKET_S: Final = 300.0
"""Seconds of one window."""
KEPT_S: Final = 86_400.0
"""Seconds for which windows are kept."""
MOST_FINDINGS: Final = 200
"""Kinds of finding told apart in a window; the rest is counted as of nobody in particular."""
STEPS: Final = 30
"""Steps told apart; the last one stands for all that follow."""
PAUSES_S: Final = (1.0, 10.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, float("inf"))
"""Upper edges of the bins of pauses."""


class Kind(msgspec.Struct, frozen=True):
    """What a finding is about."""

    kind: str
    part: str
    looks_like: str
    agent: str
    tenant: str
    model: str


class Cost(msgspec.Struct):
    """What it cost."""

    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Of one replica's prefill."""


class Pause(msgspec.Struct):
    """Steps that came after a pause of some length."""

    resumed: int = 0
    gone: int = 0
    """Of them, those that found what they had computed evicted, or its replica lost."""
    tokens: int = 0
    """That those computed again."""


class Tools(msgspec.Struct):
    """Tool results, and what else steps added. Canonical bytes."""

    results: int = 0
    bytes: int = 0
    repeats: int = 0
    """Results that the session had seen before."""
    repeated_bytes: int = 0
    grown_bytes: int = 0
    """All that steps added."""
    largest: int = 0


class Window(msgspec.Struct):
    """One stretch of time."""

    start: float
    """Unix time."""
    requests: int = 0
    findings: dict[Kind, Cost] = msgspec.field(default_factory=dict)
    prompt: list[int] = msgspec.field(default_factory=lambda: [0] * STEPS)
    """By step: prompt tokens of requests whose engine reported cached tokens."""
    cached: list[int] = msgspec.field(default_factory=lambda: [0] * STEPS)
    pauses: list[Pause] = msgspec.field(default_factory=lambda: [Pause() for _ in PAUSES_S])
    tools: Tools = msgspec.field(default_factory=Tools)

    def add(self, kind: Kind, tokens: int, seconds: float) -> None:
        """One request lost so much to this."""
        cost = self.findings.get(kind)
        if cost is None:
            if len(self.findings) >= MOST_FINDINGS:
                kind = Kind(kind.kind, "other", "", "other", "other", "other")
            cost = self.findings.setdefault(kind, Cost())
        cost.requests += 1
        cost.tokens += tokens
        cost.seconds += seconds

    def merge(self, other: Window) -> None:
        """Add another window's counts."""
        self.requests += other.requests
        for kind, cost in other.findings.items():
            mine = self.findings.setdefault(kind, Cost())
            mine.requests += cost.requests
            mine.tokens += cost.tokens
            mine.seconds += cost.seconds
        for step in range(STEPS):
            self.prompt[step] += other.prompt[step]
            self.cached[step] += other.cached[step]
        for pause, more in zip(self.pauses, other.pauses, strict=True):
            pause.resumed += more.resumed
            pause.gone += more.gone
            pause.tokens += more.tokens
        tools, others = self.tools, other.tools
        tools.results += others.results
        tools.bytes += others.bytes
        tools.repeats += others.repeats
        tools.repeated_bytes += others.repeated_bytes
        tools.grown_bytes += others.grown_bytes
        tools.largest = max(tools.largest, others.largest)


class Windows:
    """The windows of the last day."""

    def __init__(self) -> None:
        self._all: deque[Window] = deque(maxlen=int(KEPT_S / BUCKET_S))

    def now(self, at: float) -> Window:
        """The window of this time."""
        if not self._all or at - self._all[-1].start >= BUCKET_S:
            self._all.append(Window(at))
        return self._all[-1]

    def since(self, at: float) -> Window:
        """All from this time on, in one. Windows are taken whole."""
        found = Window(at)
        for window in self._all:
            if window.start + BUCKET_S > at:
                found.merge(window)
        return found

    @property
    def start(self) -> float:
        """When the oldest began, in Unix time; 0 without any."""
        return self._all[0].start if self._all else 0.0
