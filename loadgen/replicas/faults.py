"""Faults a replica can be told to have, over HTTP (POST /_sim/fault) or from Python."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from loadgen.replicas.errors import invalid

KINDS = (
    "die",
    "start",
    "restart",
    "freeze",
    "slow",
    "refuse",
    "error_rate",
    "garbage",
    "die_mid_stream",
    "unhealthy",
    "clear",
)


class Fault(msgspec.Struct, kw_only=True):
    """Body of POST /_sim/fault."""

    kind: str
    factor: float = 1.0
    """slow: how many times longer a step takes."""
    rate: float = 1.0
    """error_rate, garbage, die_mid_stream: share of the generating requests it befalls."""
    status: int = 500
    """error_rate: the status answered."""
    count: int = -1
    """error_rate, garbage, die_mid_stream: how many requests it befalls before it ends; -1: no
    end."""
    after_tokens: int = 1
    """die_mid_stream: how many tokens go out before the connection is cut."""
    downtime: float = 0.0
    """restart: seconds (of the wall clock) between death and rebirth."""
    seed: int = 0
    replica: int | None = None
    """Which replica of the fleet; the one asked when absent. A dead one can only be reached so."""


def parse_fault(body: bytes) -> Fault:
    """Read and check a fault. Raises ApiError."""
    try:
        fault = msgspec.json.decode(body, type=Fault)
    except msgspec.DecodeError as error:
        raise invalid("kind", f"not a fault: {error}") from None
    if fault.kind not in KINDS:
        raise invalid("kind", f"unknown fault {fault.kind!r}; one of: {', '.join(KINDS)}")
    if fault.factor <= 0:
        raise invalid("factor", "factor must be positive")
    return fault


class Luck:
    """Decides which requests one fault befalls: a seeded share of them, up to a number."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.left = fault.count
        self._random = Random(fault.seed)

    def strikes(self) -> bool:
        """Ask once for each request."""
        if self.left == 0 or self._random.random() >= self.fault.rate:
            return False
        self.left -= 1
        return True


class Received(msgspec.Struct, frozen=True):
    """One request as it arrived, for tests to look at."""

    method: str
    path: str
    """With the query."""
    headers: list[tuple[str, str]]
    """In order, names lowered."""
    body: bytes
    at: float
    """Monotonic seconds."""

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        for key, value in self.headers:
            if key == name.lower():
                return value
        return None

    def json(self) -> Any:
        """The body, decoded."""
        return msgspec.json.decode(self.body)
