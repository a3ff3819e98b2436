"""Two routers and one Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from redis_server import RedisServer
from state_world import Node, chain, until

from router.fleet.holders import key_of
from router.prompt.spans import SPANS
from router.scheduling.peer_request import PeerRequest

MakeNode = Callable[..., Awaitable[Node]]


async def test_two_routers_choose_alike(node: MakeNode) -> None:
    a, b = await node(), await node()
    chains = [chain(20) for _ in range(30)]
    went = [a.serve(one) for one in chains]
    assert len(set(went)) > 1
    await asyncio.sleep(0.1)
    assert [b.would(one) for one in chains] == went


async def test_a_restarted_router_chooses_as_before(node: MakeNode) -> None:
    a, b = await node(), await node()
    chains = [chain(20) for _ in range(30)]
    went = [a.serve(one) for one in chains]
    await until(lambda: all(b.holds(one) for one in chains))
    await a.stop()
    again = await node()
    assert [again.would(one) for one in chains] == went


async def test_a_router_alone_finds_what_it_knew_after_a_restart(
    node: MakeNode, redis: RedisServer
) -> None:
    a = await node()
    chains = [chain(20) for _ in range(30)]
    went = [a.serve(one) for one in chains]
    await a.stop()
    again = await node()
    assert [again.would(one) for one in chains] == went


async def test_maps_are_written_and_the_stream_is_trimmed(
    node: MakeNode, redis: RedisServer, monkeypatch
) -> None:
    monkeypatch.setattr("router.state.snapshot_writer.WRITE_INTERVAL_S", 0.3)
    monkeypatch.setattr("router.state.snapshot_writer.ROUND_INTERVAL_S", 0.1)
    a = await node()
    chains = [chain(20) for _ in range(400)]
    went = []
    for one in chains:
        went.append(a.serve(one))
        await asyncio.sleep(0.002)
    keys = a.transport.keys
    made = 0
    for _ in range(100):
        made = await redis.call("XLEN", keys.facts)
        if made and made < a.transport.sent - 20:
            break
        await asyncio.sleep(0.05)
        a.serve(chain(1))
    assert made < a.transport.sent - 20
    await a.stop()
    again = await node()
    assert [name in again.holds(one) for one, name in zip(chains, went, strict=True)] == [
        True
    ] * 400


async def test_load_is_shared_and_given_back(node: MakeNode) -> None:
    a, b = await node(), await node()
    flying = [a.place(chain(20)) for _ in range(5)]
    await until(lambda: b.in_flight() == a.in_flight())
    queued = [load.queued_tokens for load in a.fleet.loads]
    assert [load.queued_tokens for load in b.fleet.loads] == queued
    assert sum(queued) > 0
    flying[0].first_token(0.0)
    flying[0].finished(0.0)
    flying[1].finished(0.0)
    flying[2].failed(0.0)
    await until(lambda: sum(b.in_flight().values()) == 2)
    for one in flying[3:]:
        one.finished(0.0)
    await until(lambda: not b.in_flight())
    for load in b.fleet.loads:
        assert (load.queued_tokens, load.context_tokens, load.kv_tokens) == (0, 0, 0)


async def test_a_router_that_starts_hears_what_is_in_flight(node: MakeNode) -> None:
    a = await node()
    flying = [a.place(chain(5)) for _ in range(6)]
    b = await node()
    assert b.in_flight() == a.in_flight()
    for one in flying:
        one.finished(0.0)
    await until(lambda: not b.in_flight())


async def test_a_dead_routers_load_expires(node: MakeNode, monkeypatch) -> None:
    monkeypatch.setattr("router.state.peers.PEER_LEASE_S", 1.0)
    monkeypatch.setattr("router.state.sync.TICK_INTERVAL_S", 0.2)
    a, b = await node(), await node()
    for _ in range(6):
        a.place(chain(5))
    await until(lambda: sum(b.in_flight().values()) == 6)
    await a.die()
    await until(lambda: not b.in_flight(), 5.0)
    assert b.shared.peers.alive == 0
    assert all(load.queued_tokens == 0 for load in b.fleet.loads)


async def test_prefixes_being_computed_are_told(node: MakeNode) -> None:
    a, b = await node(), await node()
    told = b.placer._prefills
    first, second, third = (a.place(chain(40)) for _ in range(3))
    await until(lambda: sum(map(len, told.starts.values())) == 3)
    assert told.shared(first.prompt.chain, 40) == {first.slot: SPANS[40]}
    first.first_token(1.0)
    second.failed(1.0)
    third.finished(1.0)
    await until(lambda: not told.starts)


async def test_a_stopped_routers_load_goes_at_once(node: MakeNode) -> None:
    a, b = await node(), await node()
    a.place(chain(5))
    await until(b.in_flight)
    await a.stop()
    await until(lambda: not b.in_flight(), 1.0)


async def test_a_replicas_restart_is_told(node: MakeNode) -> None:
    a, b = await node(), await node()
    one = chain(20)
    name = a.serve(one)
    await until(lambda: b.holds(one))
    replica = a.fleet.find(f"http://{name}")
    assert a.shared.emptied(replica)
    a.index.forget(replica.slot)
    await until(lambda: not b.holds(one))
    # b sees it too, a little later: what came since then is not forgotten
    two = chain(20)
    a.placer.apply_peer_routed(PeerRequest(replica.slot, 5000, 1.0, 1.0, two, len(two)), 0.0)
    assert not b.shared.emptied(b.fleet.find(f"http://{name}"))


async def test_slots_may_differ(node: MakeNode) -> None:
    a = await node()
    from state_world import REPLICAS

    b = await node(replicas=tuple(reversed(REPLICAS)))
    chains = [chain(20) for _ in range(12)]
    went = [a.serve(one) for one in chains]
    await until(lambda: all(b.holds(one) for one in chains))
    assert [set(b.holds(one)) for one in chains] == [{name} for name in went]


async def test_a_replica_that_joins_later_is_known(node: MakeNode) -> None:
    from state_world import REPLICAS

    a = await node()
    b = await node(replicas=REPLICAS[:2])
    chains = [chain(20) for _ in range(16)]
    went = [a.serve(one) for one in chains]
    assert set(went) - set(b.shared.names.values())
    await asyncio.sleep(0.1)
    for url in REPLICAS[2:]:
        b.fleet.add(url)
    await until(lambda: all(b.holds(one) for one in chains))
    assert [set(b.holds(one)) for one in chains] == [{name} for name in went]


async def test_sessions_go_on_anywhere(node: MakeNode) -> None:
    """What one router sent is a base for what another one sends."""
    nodes = [await node() for _ in range(3)]
    grown = chain(40)
    for step in range(12):
        nodes[step % 3].serve(grown)
        await until(lambda: all(one.holds(grown) for one in nodes))  # noqa: B023
        grown = chain(4, grown)
    told = sum(one.transport.bytes_sent for one in nodes)
    assert sum(one.shared.peers.unknown for one in nodes) == 0
    assert told < 40_000


async def test_who_keeps_a_response_is_told(node: MakeNode) -> None:
    a, b = await node(), await node()
    key = key_of("resp_1")
    a.holders.remember(key, 2)
    await until(lambda: b.holders.find(key) == 1 << 2)
    # One that starts reads it in the stream.
    late = await node()
    assert late.holders.find(key) == 1 << 2
