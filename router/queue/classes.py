"""Which class a request is of: its priority, its tenant, and how long it would wait.

Clients say so in the words of several gateways and engines. Whether they are believed is the
operator's word: others may only lower their own priority.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from math import inf
from typing import Final, Protocol

import msgspec

from router.queue.ticket import HIGH, LOW, NORMAL

OBJECTIVE: Final = "objective"
PRIORITY: Final = "priority"
TENANT: Final = "tenant"
LIMIT: Final = "limit"
KEY: Final = "key"

HEADERS: Final[Mapping[bytes, str]] = {
    b"x-gateway-inference-objective": OBJECTIVE,
    b"x-llm-d-inference-objective": OBJECTIVE,
    b"x-dynamo-request-priority": PRIORITY,
    b"x-gateway-inference-fairness-id": TENANT,
    b"x-llm-d-inference-fairness-id": TENANT,
    b"x-slo-ttft-ms": LIMIT,
    b"x-llm-d-slo-ttft-ms": LIMIT,
    b"authorization": KEY,
    b"x-api-key": KEY,
}
"""Lower-case header -> what it tells."""
NAMES: Final[Mapping[str, int]] = {"high": HIGH, "normal": NORMAL, "low": LOW}
MOST_TENANT_BYTES: Final = 128
"""Longer names of tenants are taken by their hash."""


class Identity(Protocol):
    """Who sends a request, where the gateway knows its tenants."""

    @property
    def tenant(self) -> str: ...

    @property
    def priority_cap(self) -> int | None:
        """The best priority it may ask for; None: as the setting for all clients says."""
        ...

    @property
    def overflow_ttft(self) -> float | None:
        """Seconds to the first token, beyond which its requests leave the fleet, 0 for none; None:
        as the setting says."""
        ...


class Hints(msgspec.Struct, gc=False):
    """What a request's headers say of its class."""

    objective: bytes = b""
    priority: bytes = b""
    tenant: bytes = b""
    limit: bytes = b""
    key: bytes = b""


class Class(msgspec.Struct, frozen=True, gc=False):
    """What the queue goes by."""

    priority: int = NORMAL
    tenant: str = ""
    limit: float = 0.0
    """Seconds to the first token; 0 none."""


PLAIN: Final = Class()
"""Of a request that says nothing."""


def objectives(text: str) -> dict[str, int]:
    """`name=high,other=low` as names with their priorities. Raises ValueError."""
    found = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, _, priority = part.partition("=")
        if priority not in NAMES:
            raise ValueError(f"{part!r} is not NAME=PRIORITY, a priority being high, normal or low")
        found[name] = NAMES[priority]
    return found


class Classifier:
    """Says which class a request is of."""

    __slots__ = ("_limit", "_objectives", "_plain", "_trusted")

    def __init__(self, *, trusted: bool, limit: float, names: Mapping[str, int]) -> None:
        """trusted: clients may raise their priority, and name their tenant. limit: seconds to the
        first token, of those that ask for none or a longer one; 0 none. names: of objectives."""
        self._trusted = trusted
        self._limit = limit
        self._objectives = {**NAMES, **names}
        self._plain = Class(limit=limit) if limit else PLAIN

    def __call__(
        self, hints: Hints | None, body_priority: int | None, identity: Identity | None
    ) -> Class:
        """body_priority: what the body says, negative for better; None when it says nothing."""
        if hints is None and body_priority is None and identity is None:
            return self._plain
        asked = body_priority
        limit = self._limit
        tenant = ""
        if hints is not None:
            if hints.objective:
                asked = self._objectives.get(hints.objective.decode("latin-1").strip(), asked)
            elif hints.priority:
                asked = level(-_number(hints.priority))
            if hints.limit:
                wished = _number(hints.limit) / 1000.0
                if wished > 0.0 and (not limit or wished < limit):
                    limit = wished
            if identity is not None:
                tenant = identity.tenant
            elif hints.tenant and self._trusted:
                tenant = _name(hints.tenant)
            elif hints.key:
                tenant = _of_key(hints.key)
        elif identity is not None:
            tenant = identity.tenant
        priority = NORMAL if asked is None else asked
        cap = None if identity is None else identity.priority_cap
        if cap is None:
            cap = HIGH if self._trusted else NORMAL
        return Class(max(priority, level(cap)), tenant, limit)


def _number(value: bytes) -> float:
    """0 for what is no number, which asks for nothing."""
    try:
        number = float(value)
    except ValueError:
        return 0.0
    return number if abs(number) < inf else 0.0


def level(number: float) -> int:
    """A number as one of the three priorities, by its sign."""
    return HIGH if number < 0 else LOW if number > 0 else NORMAL


@lru_cache(maxsize=4096)
def _of_key(key: bytes) -> str:
    """The tenant that an API key stands for. Keys are secrets: this is not one."""
    return "key-" + blake2b(key, digest_size=8).hexdigest()


@lru_cache(maxsize=4096)
def _name(value: bytes) -> str:
    name = value.decode("latin-1").strip()
    if len(value) <= MOST_TENANT_BYTES:
        return name
    return blake2b(value, digest_size=16).hexdigest()
