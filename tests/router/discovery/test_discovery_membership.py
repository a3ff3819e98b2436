"""A source that tells of very many replicas at once does not hold up the event loop."""

from __future__ import annotations

import asyncio

from discovery_world import StartDiscovery, names

from router.discovery.membership import ADDED_A_TURN
from router.discovery.target import Target

MANY = [Target(f"http://10.0.{number // 250}.{number % 250}:8000") for number in range(1000)]


async def test_many_are_let_in_a_few_a_turn(start: StartDiscovery) -> None:
    discovery, fleet = await start(discovery="file", discovery_file="/nowhere")
    discovery.found(MANY)
    sizes = [len(fleet.members())]
    while not discovery.current and sizes[-1] < len(MANY):
        await asyncio.sleep(0)
        sizes.append(len(fleet.members()))
    steps = [after - before for before, after in zip([0, *sizes], sizes, strict=False)]
    assert max(steps) == ADDED_A_TURN
    assert sizes[-1] == len(MANY)
    await asyncio.sleep(0)
    assert await discovery.wait_first(30.0)


async def test_they_are_found_when_the_last_is_in(start: StartDiscovery) -> None:
    discovery, fleet = await start(discovery="file", discovery_file="/nowhere")
    discovery.found(MANY)
    assert await discovery.wait_first(30.0)
    assert len(fleet.members()) == len(MANY)


async def test_a_few_are_in_at_once(start: StartDiscovery) -> None:
    discovery, fleet = await start(discovery="file", discovery_file="/nowhere")
    discovery.found(MANY[:ADDED_A_TURN])
    assert len(fleet.members()) == ADDED_A_TURN
    assert await discovery.wait_first(0.0)


async def test_what_is_told_meanwhile_counts_and_only_the_latest(start: StartDiscovery) -> None:
    discovery, fleet = await start(discovery="file", discovery_file="/nowhere")
    discovery.found(MANY)
    discovery.found(MANY[500:])
    left = Target(MANY[0].url, leaving=True)
    discovery.found([left, *MANY[1:20], Target("http://10.9.9.9:8000")])
    expected = sorted([f"10.0.0.{number}:8000" for number in range(1, 20)] + ["10.9.9.9:8000"])
    async with asyncio.timeout(30):
        while fleet.names() and "10.9.9.9:8000" not in names(fleet):  # noqa: ASYNC110
            await asyncio.sleep(0)
    draining = [replica.name for replica in fleet.members() if replica.draining]
    assert sorted(set(names(fleet)) - set(draining)) == expected


async def test_stopping_lets_nobody_in(start: StartDiscovery) -> None:
    discovery, fleet = await start(discovery="file", discovery_file="/nowhere")
    discovery.found(MANY)
    await discovery.stop()
    size = len(fleet.members())
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(fleet.members()) == size < len(MANY)
