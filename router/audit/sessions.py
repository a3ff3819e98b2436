"""The latest sessions, step by step."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Final

import msgspec

MOST_SESSIONS: Final = 1000
"""Sessions that are kept; the one that was used least lately goes first."""
MOST_STEPS: Final = 100
"""Latest steps of each session that are kept."""
MOST_RESULTS: Final = 256
"""Tool results of a session that are recognised when they come again."""


class Changed(msgspec.Struct, frozen=True, gc=False):
    """Where a prompt parts from the one before."""

    part: str
    place: int
    """Canonical bytes from the part's beginning."""


class Step(msgspec.Struct, frozen=True, gc=False):
    """One request of a session. Tokens as its engine counted them."""

    at: float
    """Unix time."""
    request_id: str
    prompt_tokens: int
    cached_tokens: int | None
    """None where the engine does not report them."""
    replica: str
    pause_s: float | None
    """Seconds since the answer before it was over; None for the first, negative for one that came
    while it ran."""
    tool: str
    """The tool whose call it follows; empty without one."""
    reason: str
    """A word of `router.diagnosis.REASONS`."""
    missed_tokens: int
    divergence: Changed | None


class Session(msgspec.Struct, eq=False):
    """One session, as far as it is remembered."""

    id: str
    model: str
    tenant: str
    agent: str
    first_seen: float
    last_seen: float
    ended: float = 0.0
    """Unix time at which its last answer was over."""
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    replicas: list[str] = msgspec.field(default_factory=list)
    """In the order in which it went to them."""
    requests: deque[Step] = msgspec.field(default_factory=lambda: deque(maxlen=MOST_STEPS))
    results: set[int] = msgspec.field(default_factory=set)
    """Hashes of the tool results in it."""


class Sessions:
    """All of them, the latest used last."""

    def __init__(self, most: int = MOST_SESSIONS) -> None:
        self._most = most
        self._all: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._all)

    def get(self, name: str) -> Session | None:
        """The session of this name."""
        return self._all.get(name)

    def of(self, name: str, model: str, tenant: str, agent: str, now: float) -> Session:
        """The session of this name, a new one where there is none."""
        found = self._all.get(name)
        if found is None:
            found = self._all[name] = Session(name, model, tenant, agent, now, now)
            if len(self._all) > self._most:
                self._all.popitem(last=False)
        else:
            self._all.move_to_end(name)
        return found

    def latest(self) -> Iterator[Session]:
        """The latest used first."""
        return reversed(self._all.values())
