"""Where several processes count together: in Redis, or in the supervisor of one host's workers.

Either takes one call at a time of each process, and answers in the same words (limits_script.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from router.tenants.accounts import Amounts

TIMEOUT_S: Final = 0.5
"""For a reply: a request may wait for it."""


# The script reads them by one letter each: there are many in a call.
class GivenAccount(
    msgspec.Struct,
    rename={"limits": "l", "held": "h", "changes": "c", "used": "u", "wanted": "w"},
):
    """An account in a call."""

    limits: list[tuple[int, int, int, int]]
    """Measure, period, cap, 1 for one in shadow."""
    held: list[int]
    """By measure: what this process holds."""
    changes: list[tuple[int, int, int]]
    """Of a minute: measure, second, amount; second 0 is that of the coming lease."""
    used: list[int]
    """By measure: used by requests that are over."""
    wanted: list[int]
    """By measure: wanted on lease."""


class WaitingRequest(msgspec.Struct, rename={"accounts": "a", "need": "n"}):
    """A request in a call."""

    accounts: list[int]
    """Their places."""
    need: Amounts
    """What it needs."""


class Call(msgspec.Struct):
    """What a process settled since its last call, the requests that wait, and what it wants on
    lease."""

    router: str
    lease: int
    """Milliseconds of silence after which what it holds is given back."""
    seq: int
    """One that was heard before changes nothing again."""
    day: int
    month: int
    accounts: list[GivenAccount]
    requests: list[WaitingRequest]


class Reply(msgspec.Struct, array_like=True):
    """The answer to a call."""

    second: int
    """By the counter's clock."""
    routers: int
    """Processes that count together."""
    results: list[tuple[int, list[tuple[int, int, int, int]]]]
    """Of each request: 1 where it is refused; place of an account, place of a limit of it, what
    counts against that limit, milliseconds to wait or -1."""
    told: list[tuple[list[int], list[int]]]
    """Of each account: what counts against each of its limits; by measure, what is on lease."""


class Session(Protocol):
    """A line to a counter."""

    async def call(self, names: Sequence[str], call: Call) -> Reply:
        """names: of the accounts. Raises one of `redis_client.errors`."""

    async def close(self) -> None:
        """It is needed no more."""


class Counter(Protocol):
    """Where processes count together."""

    name: str
    """In log lines."""
    label: str
    """In metrics."""
    tick_s: float
    """Seconds between two calls that only settle and lease."""

    async def open(self) -> Session:
        """Raises one of `redis_client.errors`."""


def account_key(prefix: str, account: str) -> str:
    """Where an account is in Redis; with the prefix's hash tag."""
    return "{" + prefix + "}:limit:" + account
