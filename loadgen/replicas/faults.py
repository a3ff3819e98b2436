"""Faults a replica can be told to have, over HTTP (POST /_sim/fault) or from Python."""

from __future__ import annotations

from math import inf
from random import Random
from typing import Any

import msgspec

from loadgen.replicas.errors import ApiError

_STRUCK = ("rate", "count", "seed")
KINDS: dict[str, tuple[str, ...]] = {
    "die": (),
    "start": (),
    "restart": ("downtime",),
    "freeze": (),
    "slow": ("factor",),
    "refuse": (),
    "error_rate": ("status", *_STRUCK),
    "garbage": _STRUCK,
    "die_mid_stream": ("after_tokens", *_STRUCK),
    "unhealthy": (),
    "clear": (),
}
"""Each kind of fault, and the fields that it takes."""


class Fault(msgspec.Struct, kw_only=True):
    """Body of POST /_sim/fault. Raises ValueError, which names the field, for a value that means
    nothing."""

    kind: str
    factor: float = 1.0
    """slow: how many times longer a step takes."""
    rate: float = 1.0
    """error_rate, garbage, die_mid_stream: share of the generating requests it befalls."""
    status: int = 500
    """error_rate: the status answered, 400 to 599."""
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

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is not a fault; use one of: {', '.join(KINDS)}")
        if not 0 < self.factor < inf:
            raise ValueError(f"factor must be above 0, not {self.factor:g}")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate must lie between 0 and 1, not {self.rate:g}")
        if not 400 <= self.status <= 599:
            raise ValueError(f"status must be an error's, 400 to 599, not {self.status}")
        if self.count != -1 and self.count < 1:
            raise ValueError(f"count must be at least 1, or -1 for no end, not {self.count}")
        if self.after_tokens < 0:
            raise ValueError(f"after_tokens must not be negative, not {self.after_tokens}")
        if not 0 <= self.downtime < inf:
            raise ValueError(f"downtime must not be negative, not {self.downtime:g}")


def parse_fault(body: bytes) -> Fault:
    """Read and check a fault; fields that its kind does not heed are refused. Raises ApiError."""
    try:
        given = msgspec.json.decode(body, type=dict[str, Any])
        fault = msgspec.convert(given, Fault)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # What Fault itself says comes with a path that is always the whole.
        raise ApiError(400, f"not a fault: {error}".removesuffix(" - at `$`")) from None
    takes = ("kind", *KINDS[fault.kind], "replica")
    for field in given:
        if field not in takes:
            raise ApiError(
                400, f"not a fault: {fault.kind} has no {field!r}; it takes {', '.join(takes)}"
            )
    if fault.kind == "slow" and "factor" not in given:
        raise ApiError(400, "not a fault: slow needs factor, how many times as long a step takes")
    return fault


class FaultTrigger:
    """Decides which requests one fault befalls: a seeded share of them, up to a number."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.left = fault.count
        self._random = Random(fault.seed)

    def strikes(self) -> bool:
        """Whether the fault hits this request.

        Call it once for each request: it counts and draws.
        """
        if self.left == 0 or self._random.random() >= self.fault.rate:
            return False
        self.left -= 1
        return True


class Received(msgspec.Struct, frozen=True):
    """One request as it arrived, for tests to look at."""

    method: str
    path: str
    """The path with its query."""
    headers: list[tuple[str, str]]
    """Headers in the order received, with names in lower case."""
    body: bytes
    at: float
    """The time of arrival in monotonic seconds."""

    def header(self, name: str) -> str | None:
        """The first value of a header; None when it was not sent."""
        for key, value in self.headers:
            if key == name.lower():
                return value
        return None

    def json(self) -> Any:
        """The body, decoded from JSON."""
        return msgspec.json.decode(self.body)
