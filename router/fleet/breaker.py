"""A circuit breaker: stop sending requests where they fail, try again with one at a time.

    closed ── too many failures ──> open ── cooldown over ──> half open ── trial succeeds ──> closed
                                     ^                            │
                                     └─────── trial fails ────────┘  (longer cooldown)

Pure: it is told what happened and when, in monotonic seconds, and starts no timers.
"""

from __future__ import annotations

from enum import StrEnum

ERROR_WINDOW_S = 10.0
"""The error rate covers so many seconds, after which failures are forgotten."""
ERROR_RATE = 0.5
"""Share of requests failing in a window that opens the breaker though some succeed in between."""
MAX_COOLDOWN_S = 30.0
MIN_TRIAL_S = 30.0
"""A trial whose outcome never came is written off after this many seconds or the cooldown."""


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """One replica's breaker. Its mutable state: a window's counts, and the times below."""

    __slots__ = (
        "_base_cooldown",
        "_consecutive",
        "_failed",
        "_limit",
        "_succeeded",
        "_window_start",
        "cooldown",
        "opened",
        "opens",
        "state",
        "trial_since",
        "troubled",
    )

    def __init__(self, failures: int, cooldown: float) -> None:
        self._limit = failures
        self._base_cooldown = cooldown
        self._window_start = 0.0
        self._failed = self._succeeded = self._consecutive = 0
        self.opens = 0
        """Times it has opened, ever."""
        self.reset()

    def reset(self) -> None:
        """Close the breaker and forget every failure: the replica is another process now."""
        self.state = BreakerState.CLOSED
        self.troubled = False
        """Whether anything needs to be counted; while False, successes need not be reported."""
        self.cooldown = self._base_cooldown
        self.opened = 0.0
        self.trial_since = 0.0
        """When the trial now running was admitted; 0.0 while there is none."""
        self._start_window(0.0)

    def failed(self, now: float, at_once: bool = False) -> bool:
        """Count a failed request; with at_once no more are needed. True if the breaker opened."""
        if self.state is BreakerState.OPEN:
            return False  # sent before it opened, or as a last resort: no news
        if self.state is BreakerState.HALF_OPEN:
            self.cooldown = min(self.cooldown * 2, max(MAX_COOLDOWN_S, self._base_cooldown))
            self._open(now)
            return True
        if not self.troubled or now - self._window_start > ERROR_WINDOW_S:
            self.troubled = True
            consecutive = self._consecutive
            self._start_window(now)
            self._consecutive = consecutive
        self._failed += 1
        self._consecutive += 1
        if (
            at_once
            or self._consecutive >= self._limit
            or (
                self._failed >= 2 * self._limit
                and self._failed >= ERROR_RATE * (self._failed + self._succeeded)
            )
        ):
            self._open(now)
            return True
        return False

    def succeeded(self, now: float) -> bool:
        """Count a request that succeeded; need not be called unless troubled. True if it closed."""
        if self.state is BreakerState.OPEN:
            return False
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.CLOSED
            self.trial_since = 0.0
            self._start_window(now)
            return True
        self._consecutive = 0
        self._succeeded += 1
        if now - self._window_start > ERROR_WINDOW_S:
            self.reset()
        return False

    def admit(self, now: float) -> None:
        """A trial request was sent. Call this only while half open, for one request at a time."""
        self.trial_since = now

    def withdraw(self) -> None:
        """The trial ended without proving anything, such as when its client left. The next request
        may be sent."""
        self.trial_since = 0.0

    def tick(self, now: float) -> bool:
        """Apply what changes with time alone. True if the state or the trial changed."""
        if self.state is BreakerState.OPEN and now - self.opened >= self.cooldown:
            self.state = BreakerState.HALF_OPEN
            self.trial_since = 0.0
            return True
        if (
            self.state is BreakerState.HALF_OPEN
            and self.trial_since
            and now - self.trial_since >= max(MIN_TRIAL_S, self.cooldown)
        ):
            self.trial_since = 0.0
            return True
        return False

    @property
    def passes(self) -> bool:
        """Whether the breaker lets a request through now."""
        return self.state is BreakerState.CLOSED or (
            self.state is BreakerState.HALF_OPEN and not self.trial_since
        )

    def _open(self, now: float) -> None:
        self.state = BreakerState.OPEN
        self.troubled = True
        self.opened = now
        self.opens += 1
        self.trial_since = 0.0
        self._start_window(now)

    def _start_window(self, now: float) -> None:
        self._window_start = now
        self._failed = 0
        self._succeeded = 0
        self._consecutive = 0
