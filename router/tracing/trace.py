"""One request's trace, while the request is in progress, and as it is told at the end."""

from __future__ import annotations

from random import getrandbits
from time import time

import msgspec

from router.telemetry.record import Finished
from router.tracing.context import TraceContext


class Attempt(msgspec.Struct, array_like=True, gc=False):
    """One attempt at a replica. Times are Unix seconds."""

    span_id: bytes
    replica: str
    started: float
    ended: float = 0.0
    """0 while it is under way."""
    failure: str = ""
    """Why it failed: a word of `Outcome`. Empty where it did not."""


class Trace:
    """Ids, and the attempts so far."""

    __slots__ = ("attempts", "parent", "sampled", "span_id", "trace_id")

    def __init__(self, came: TraceContext | None, share: float) -> None:
        """came: from the client. share: of those that are traced where the client decides
        nothing."""
        if came is None:
            self.trace_id = b"%032x" % (getrandbits(128) or 1)
            self.parent = b""
            self.sampled = share >= 1.0 or getrandbits(32) < share * 4294967296.0
        else:
            self.trace_id = came.trace_id
            self.parent = came.span_id
            self.sampled = came.sampled
        self.span_id = b"%016x" % (getrandbits(64) or 1)
        self.attempts: list[Attempt] = []

    def attempt(self, replica: str) -> bytes:
        """An attempt begins. Returns the traceparent that hangs the engine's spans below it."""
        if not self.sampled:
            return b"00-%b-%b-00" % (self.trace_id, self.span_id)
        span_id = b"%016x" % (getrandbits(64) or 1)
        self.attempts.append(Attempt(span_id, replica, time()))
        return b"00-%b-%b-01" % (self.trace_id, span_id)

    def attempt_failed(self, why: str) -> None:
        """The attempt under way came to nothing."""
        if self.attempts and not self.attempts[-1].ended:
            self.attempts[-1].ended = time()
            self.attempts[-1].failure = why


class Told(msgspec.Struct, array_like=True, tag="request", gc=False):
    """A finished request, as the exporter gets it."""

    trace_id: bytes
    span_id: bytes
    parent: bytes
    """Empty where the trace begins here."""
    attempts: list[Attempt]
    record: Finished


class Secret(msgspec.Struct, array_like=True, tag="secret", gc=False):
    """What sessions' names are made with, as in the access log."""

    secret: bytes


class Names(msgspec.Struct, array_like=True, tag="names", gc=False):
    """The fleet as it is from here on: slot -> name."""

    names: dict[int, str]


Message = Told | Secret | Names
