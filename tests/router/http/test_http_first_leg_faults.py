"""Two prefill and three decode replicas under load: each fault of each role, at each moment between
the legs. No client gets an error before its first byte, and no blocks are left behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
from http_world import Connect, MakeRouter, Raw, post, until

from loadgen.engine import Transfer
from loadgen.replicas import QUICK, NixlSettings, Replica, SimulatedFleet
from router.app import App

PATH = "/v1/chat/completions"
ENGINE = msgspec.structs.replace(QUICK, prefill_rate=100_000.0, max_num_batched_tokens=16_384)
LEASE = 5.0
NIXL = NixlSettings(lease_seconds=LEASE, timeout_seconds=0.15, transfer=Transfer(base_seconds=0.01))
CLIENTS = 6
SOON = 3.0
"""Seconds after which nothing may be held for anybody: well below the lease. It takes a tenth of that,
but not on a machine that is busy with other things."""


class World:
    """A router, its fleet, and clients that ask all the time."""

    def __init__(self, app: App, fleet: SimulatedFleet, connect: Connect) -> None:
        self.app = app
        self.prefill, self.decode = fleet.replicas[:2], fleet.replicas[2:]
        self.done = 0
        self.cut = 0
        """Answers that broke off after their first token."""
        self.errors: list[str] = []
        """Told before any token."""
        self._connect = connect
        self._stop = False
        self._serial = 0
        self._clients: list[asyncio.Task[None]] = []
        self._open: set[Raw] = set()

    def count(self, outcome: str) -> int:
        apart = self.app.gateway.disaggregation
        assert apart is not None
        return apart.counts[outcome]

    def body(self, **fields: object) -> bytes:
        """A prompt of 2,000 tokens that nobody has seen."""
        self._serial += 1
        content = f"{self._serial:08} " + "some words " * 720
        message = {"role": "user", "content": content}
        asked = {"model": "sim", "messages": [message], "max_tokens": 12, "stream": True}
        return json.dumps({**asked, **fields}).encode()

    def start(self) -> None:
        self._clients = [asyncio.create_task(self._client(n)) for n in range(CLIENTS)]

    async def _client(self, number: int) -> None:
        while not self._stop:
            raw = await self._connect(self.app)
            self._open.add(raw)
            raw.send(post(PATH, self.body(stream=number % 4 != 0)))
            await self._answer(raw)
            self._open.discard(raw)
            raw.close()

    async def leave(self) -> None:
        """All clients go at once, whatever they wait for."""
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        for raw in self._open:
            raw.vanish()
        self._open.clear()

    async def _answer(self, raw: Raw) -> None:
        status, headers = await raw.head()
        if status != 200:
            self.errors.append(f"{status} {(await raw.rest())[:200]!r}")
            return
        try:
            if "content-length" in headers:
                body = await raw.reader.readexactly(int(headers["content-length"]))
            else:
                body = await raw.chunks()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.cut += 1
            return
        if b'"content"' not in body:
            self.errors.append(repr(body[:200]))
        elif b'"error"' in body:
            self.cut += 1
        else:
            self.done += 1

    async def more(self, answers: int) -> None:
        """So many more answers have come."""
        enough = self.done + answers
        await until(lambda: self.done >= enough)

    async def stop(self) -> None:
        """Every client gets its answer, and leaves."""
        self._stop = True
        async with asyncio.timeout(10):
            await asyncio.gather(*self._clients)

    def held(self) -> list[int]:
        return [replica.held_blocks for replica in self.prefill]


@pytest.fixture
async def world(
    router: MakeRouter, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setattr("router.http.timeouts.SWEEP_INTERVAL_S", 0.02)
    monkeypatch.setattr("router.disaggregation.choice.STALL", 100.0)  # nearly always apart
    monkeypatch.setattr("router.http.side_request._AWAY_SECONDS", 0.1)
    monkeypatch.setattr("router.http.side_request._LOOK_SECONDS", 0.02)
    async with SimulatedFleet(5, params=ENGINE, nixl=NIXL) as fleet:
        urls = fleet.urls
        app = await router(
            *urls[2:],
            prefill=tuple(urls[:2]),
            policy="cache_aware",
            prefill_rate=ENGINE.prefill_rate,
            health_interval=0.2,
            health_timeout=0.2,
            first_byte_timeout=0.4,
            breaker_cooldown=0.1,
            slow_start=0.0,
        )
        await until(lambda: app.fleet.usable.bit_count() == 5)
        yield World(app, fleet, connect)


MOMENTS: dict[str, tuple[str, Callable[[Replica], bool]]] = {
    "prefilling": ("prefill", lambda it: bool(it.engine.running)),
    "held": ("prefill", lambda it: it.held_blocks > 0),
    "fetching": ("decode", lambda it: bool(it.engine.fetching)),
}


async def moment(world: World, name: str) -> int:
    """Wait until this happens at any replica; returns its number among those of its role."""
    role, condition = MOMENTS[name]
    replicas: list[Replica] = getattr(world, role)
    tasks = [asyncio.create_task(each.until(condition)) for each in replicas]
    done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=10)
    for task in left:
        task.cancel()
    assert done
    return tasks.index(done.pop())


@pytest.mark.parametrize("fault", ["die", "freeze", "refuse", "restart"])
@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("when", MOMENTS)
async def test_a_fault_costs_no_client_its_answer(
    world: World, when: str, role: str, fault: str
) -> None:
    world.start()
    await until(lambda: world.count("handed_over") >= 2)
    found = await moment(world, when)
    number = found if MOMENTS[when][0] == role else 0
    replica: Replica = getattr(world, role)[number]
    await getattr(replica, fault)()
    await world.more(CLIENTS)
    if fault == "die":
        await replica.start()
    await replica.clear()
    await world.more(CLIENTS)
    await world.stop()
    assert world.errors == []
    # Nobody can be told to free what a frozen replica keeps: it does so when the lease ends.
    frozen = (role, fault) == ("prefill", "freeze")
    await until(lambda: world.held() == [0, 0], LEASE + SOON if frozen else SOON)


@pytest.mark.parametrize("when", MOMENTS)
async def test_clients_that_leave_hold_nothing(world: World, when: str) -> None:
    for _ in range(3):
        world.start()
        await moment(world, when)
        await world.leave()
        await until(lambda: world.held() == [0, 0], SOON)
        await until(lambda: not world.app.gateway.tasks)
    assert world.errors == []
    assert world.count("stranded") == 0
    engines = [each.engine for each in (*world.prefill, *world.decode)]
    await until(lambda: not any(engine.kv_usage for engine in engines))
