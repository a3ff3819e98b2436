"""Real Redis servers, and routers without their sockets: fleet, index, placer, sharing."""

from __future__ import annotations

import asyncio
import itertools
import time
from array import array
from collections.abc import Callable
from typing import Any

import xxhash
from ending import end
from prompts import prompt_of
from redis_server import RedisServer

from router.config import Settings
from router.config.state_url import parse
from router.fleet.fleet import Fleet
from router.fleet.holders import Holders
from router.fleet.listener import FleetListener
from router.fleet.replica import Replica
from router.index import ByteIndex
from router.policies import load_policy
from router.prompt.spans import SPANS
from router.scheduling.placer import Placement, Placer
from router.state.redis_connector import RedisConnector
from router.state.redis_transport import RedisTransport
from router.state.sync import StateSync, Transport
from router.types import Chain

REPLICAS = tuple(f"http://replica-{letter}:8000" for letter in "abcd")
MODEL = "m"


class _Membership(FleetListener):
    def __init__(self, index: ByteIndex) -> None:
        self.index = index

    def on_added(self, replica: Replica) -> None:
        self.index.add_replica(replica.slot, replica.kv_tokens * 4)

    def on_removed(self, replica: Replica) -> None:
        self.index.remove_replica(replica.slot)


class Node:
    """A router without sockets."""

    def __init__(
        self, transport: Transport, replicas: tuple[str, ...] = REPLICAS, capacity: int = 2_000_000
    ) -> None:
        self.fleet = Fleet(Settings(replicas=replicas, kv_cache_tokens=capacity))
        self.index = ByteIndex(SPANS)
        self.fleet.listen(_Membership(self.index))
        policy = load_policy("cache_aware")
        policy.members(self.fleet.names())
        self.placer = Placer(self.index, policy, self.fleet.loads, learn_speed=False)
        self.transport = transport
        self.holders = Holders()
        self.fleet.listen(self.holders)
        self.shared = StateSync(
            self.fleet, self.index, [self.placer], transport, self.index.resize, self.holders
        )
        self.shared.start()

    @property
    def all(self) -> int:
        return sum(1 << replica.slot for replica in self.fleet.members())

    def place(self, chain: Chain) -> Placement:
        size = SPANS[len(chain)] + 17
        return self.placer.place(prompt_of(chain, size, MODEL), self.all, time.monotonic())

    def serve(self, chain: Chain) -> str:
        """A request from beginning to end; the name of the replica it went to."""
        placement = self.place(chain)
        placement.first_token(time.monotonic())
        placement.finished(time.monotonic())
        return self.shared.names[placement.slot]

    def would(self, chain: Chain) -> str:
        """The replica a request would go to, without a trace of it in index or books."""
        eligible = self.all
        size = SPANS[len(chain)] + 17
        ask = self.placer._request(prompt_of(chain, size, MODEL), eligible, time.monotonic())
        return self.shared.names[self.placer.policy.choose(ask, self.fleet.loads).slot]

    def holds(self, chain: Chain) -> dict[str, int]:
        """Replica -> leading weight held."""
        return {
            name: weight
            for weight, mask in self.index.match(chain)
            for slot, name in self.shared.names.items()
            if mask >> slot & 1
        }

    def in_flight(self) -> dict[str, int]:
        loads = self.fleet.loads
        return {
            name: loads[slot].in_flight
            for slot, name in self.shared.names.items()
            if loads[slot].in_flight
        }

    async def ready(self) -> Node:
        await self.shared.ready(5.0)
        return self

    async def stop(self) -> None:
        await self.shared.stop()

    async def die(self) -> None:
        """Stop as SIGKILL would: nobody is told."""
        shared = self.shared
        shared._running = False
        assert shared._ticking is not None
        shared._ticking.cancel()
        await end(self.transport._tasks)  # type: ignore[attr-defined]


def redis_carrier(url: str, password: str = "", prefix: str = "warmroute") -> RedisTransport:
    return RedisTransport(RedisConnector(parse(url), password, "", "test"), prefix)


_fresh = itertools.count(1)


def chain(blocks: int, before: Chain | None = None) -> Chain:
    """A chain nobody has seen, after one that may have been."""
    made = array("Q", before or ())
    seed = made[-1] if made else 1
    number = next(_fresh)
    made.extend(xxhash.xxh3_64_intdigest(f"{number} {k}".encode(), seed) for k in range(blocks))
    return made


async def answers(
    server: RedisServer, *command: str | bytes | int, like: Callable[[Any], object]
) -> None:
    """Wait until a command's answer is so."""
    deadline = time.monotonic() + 15
    while not like(await server.call(*command)):
        assert time.monotonic() < deadline, f"{command} never answers so"
        await asyncio.sleep(0.02)


async def until(condition: Callable[[], object], within: float = 10.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.005)
