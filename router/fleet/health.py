"""Active health: what the answers to GET /health say of a replica."""

from __future__ import annotations

import random
from enum import StrEnum

from router.fleet.reader import Failure, Reader, ReadError

MAX_PROBE_INTERVAL_S = 3.0
"""Seconds between probes of a replica that stays away; it must be noticed soon when it is back."""
FLAP_MEMORY_S = 30.0
"""Seconds ready after which a replica's earlier outages no longer slow down its way back."""
HURRIED_PROBE_S = 0.2
"""Seconds until the probe that a failure of live traffic asks for."""
MAX_HURRIED_PROBES = 3
"""Probes after an outage that live traffic may hasten; a flapping replica gets no more of them."""
LOOP_STATUS = 508
"""What a router answers to a request that has passed through it before."""
MAX_HEALTH_BYTES = 64 * 1024
"""Bytes of an answer to /health that are read; the engine's is empty."""


class HealthState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"


class Health:
    """One replica's health, without I/O or a clock: it is called with what happened and when, in
    monotonic seconds."""

    __slots__ = (
        "_after",
        "_failed",
        "_interval",
        "_retries",
        "failure",
        "reason",
        "since",
        "state",
        "was_ready",
    )

    def __init__(self, interval: float, unhealthy_after: int, now: float) -> None:
        self._interval = interval
        self._after = unhealthy_after
        self._failed = 0
        self._retries = 0
        self.state = HealthState.STARTING
        self.since = now
        """Monotonic seconds at which it got into this state."""
        self.was_ready = False
        """It was ready at least once."""
        self.reason = ""
        """Why it is not ready; empty when it is."""
        self.failure: Failure | None = None
        """The worst way a probe failed since it was last ready; None while it is."""

    @property
    def suspect(self) -> bool:
        """The last probe failed, but it is still taken for ready."""
        return self.state is HealthState.READY and self._failed > 0

    @property
    def well(self) -> bool:
        """Whether it is ready and its last probe succeeded."""
        return self.state is HealthState.READY and not self._failed

    @property
    def only_slow(self) -> bool:
        """It was ready once, and its probes have only timed out since."""
        return self.was_ready and self.failure is Failure.SLOW

    @property
    def was_refused(self) -> bool:
        """It was ready once, and refused a connection since: its process is gone, most likely."""
        return self.was_ready and self.failure is Failure.REFUSED

    def good(self, now: float) -> bool:
        """A probe was answered well. True if the replica got ready by it."""
        self._failed = 0
        if self.state is HealthState.READY:
            if now - self.since > FLAP_MEMORY_S:
                self._retries = 0
            return False
        self.state = HealthState.READY
        self.since = now
        self.was_ready = True
        self.reason = ""
        self.failure = None
        return True

    def settled(self) -> None:
        """Note that it is known whether the replica restarted while it was away, so that this is
        not concluded a second time."""
        if self.failure is Failure.REFUSED:
            self.failure = Failure.BAD

    def bad(self, why: ReadError, now: float, at_once: bool = False) -> bool:
        """A probe failed, or with at_once live traffic could not connect.

        True if the replica got unhealthy by it: a ready one after some probes, another at once.
        """
        self._failed += 1
        if self.state is HealthState.UNHEALTHY:
            self.reason = str(why)
            self.failure = max(self.failure or why.failure, why.failure)
            return False
        if self.state is HealthState.READY and not at_once and self._failed < self._after:
            return False
        self.state = HealthState.UNHEALTHY
        self.since = now
        self.reason = str(why)
        self.failure = why.failure
        return True

    def patience(self, usual: float) -> float:
        """Seconds to wait for a probe's answer: not long for one that is suspect already, so that
        a frozen replica is out soon."""
        return min(usual, self._interval) if self.suspect else usual

    def pause(self, hurried: bool = False) -> float:
        """Seconds until the next probe: spread by chance, longer and longer while it stays away.

        hurried: live traffic has just found out that something is wrong.
        """
        wait = self._interval
        if self.state is HealthState.UNHEALTHY:
            wait = min(wait * 1.5**self._retries, max(MAX_PROBE_INTERVAL_S, wait))
            hurried = hurried and self._retries < MAX_HURRIED_PROBES
            self._retries = min(self._retries + 1, 20)
        if self.suspect:
            wait *= 0.2
        if hurried:
            wait = min(wait, HURRIED_PROBE_S)
        return wait * random.uniform(0.9, 1.1)


class OwnFleetError(ReadError):
    """The replica is this router itself, or leads to it."""


async def probe(reader: Reader, within: float) -> None:
    """Ask a replica for its health. Raises ReadError with the reason when it is not well."""
    answer = await reader.get("/health", MAX_HEALTH_BYTES, within)
    if answer.status == LOOP_STATUS:
        raise OwnFleetError(
            "it leads back to this router itself: take it out of replicas, or out of what "
            "discovery finds"
        )
    if not 200 <= answer.status < 300:
        raise ReadError(f"/health answered {answer.status}")
