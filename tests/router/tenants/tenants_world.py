"""Ledgers that count in a real Redis, and accounts to charge."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec
from redis_server import RedisServer

from router.config.state_url import parse
from router.state.redis_connector import RedisConnector
from router.tenants.accounts import (
    FIELDS,
    INPUT,
    OUTPUT,
    REQUESTS,
    TOKENS,
    Account,
    Amounts,
    Denial,
    Limit,
    Reservation,
)
from router.tenants.counters import Call, Counter, Reply
from router.tenants.host_counter import HostCounter
from router.tenants.shared_ledger import SharedLedger


def account(name: str = "tenant:acme", shadow: tuple[str, ...] = (), **limits: int) -> Account:
    """An account with these limits."""
    made = Account(name, name.partition(":")[0], ())
    made.adopt(
        tuple(Limit(each, *FIELDS[each], cap, each in shadow) for each, cap in limits.items())
    )
    return made


def need(prompt: int = 0, output: int = 0, money: int = 0) -> Amounts:
    """What one request needs."""
    amounts = [1, prompt, output, prompt + output, money, 1]
    assert (REQUESTS, INPUT, OUTPUT, TOKENS) == (0, 1, 2, 3)
    return tuple(amounts)  # type: ignore[return-value]


def connector(server: RedisServer) -> RedisConnector:
    return RedisConnector(parse(server.url), "", "", "warmroute")


class At:
    """A client at this address."""

    def __init__(self, peer: str) -> None:
        self.peer = peer


class Local:
    """A counter in this process, without the supervisor's line to it."""

    name = label = "here"
    tick_s = 0.05

    def __init__(self, counter: HostCounter) -> None:
        self._counter = counter

    async def open(self) -> Local:
        return self

    async def call(self, names: Sequence[str], call: Call) -> Reply:
        # As over a line: neither side keeps what the other has.
        asked = msgspec.json.decode(msgspec.json.encode(call), type=Call)
        reply = self._counter.call(names, asked)
        return msgspec.json.decode(msgspec.json.encode(reply), type=Reply)

    async def close(self) -> None:
        pass


class Router:
    """The ledger of one router, or worker."""

    def __init__(self, counter: Counter, name: str, without_redis: str = "share") -> None:
        self.ledger = SharedLedger(counter, name, without_redis)

    async def start(self) -> Router:
        self.ledger.start()
        await until(lambda: self.ledger.up)
        return self

    async def reserve(self, amounts: Amounts, *accounts: Account) -> Reservation | Denial:
        decision = self.ledger.reserve(accounts, amounts)
        return decision if isinstance(decision, Reservation | Denial) else await decision

    def crash(self) -> None:
        """Be gone as after kill -9: nothing is told any more."""
        task = self.ledger._task
        assert task is not None
        task.cancel()


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.005)
