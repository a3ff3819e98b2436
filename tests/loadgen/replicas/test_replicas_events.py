"""KV events: what a subscriber that follows them believes is what the engine holds."""

import asyncio
import socket
from collections import Counter

import httpx
import msgspec
import pytest
import zmq
import zmq.asyncio

from loadgen.replicas import QUICK, SimulatedFleet

SMALL = msgspec.structs.replace(QUICK, num_blocks=40, max_model_len=500)


@pytest.fixture
async def fleet():
    async with SimulatedFleet(1, params=SMALL, kv_events_port=0) as running:
        yield running


@pytest.fixture
def context():
    with zmq.asyncio.Context() as made:
        yield made


def apply(held, tokens, payload):
    at, events, rank = msgspec.msgpack.decode(payload)
    assert rank == 0
    assert at > 1e9
    for event in events:
        if event["type"] == "BlockStored":
            held.update(event["block_hashes"])
            size = event["block_size"]
            assert len(event["token_ids"]) == size * len(event["block_hashes"])
            parent = event.get("parent_block_hash")
            before = tokens[parent] if parent is not None else []
            for place, key in enumerate(event["block_hashes"]):
                before = before + event["token_ids"][place * size : (place + 1) * size]
                tokens[key] = before
        elif event["type"] == "BlockRemoved":
            (key,) = event["block_hashes"]
            held[key] -= 1
            if not held[key]:
                del held[key]
        else:
            assert event == {"type": "AllBlocksCleared"}
            held.clear()


async def test_a_followers_map_is_the_engines(fleet, context):
    replica = fleet.replicas[0]
    async with httpx.AsyncClient(base_url=fleet.urls[0], timeout=20) as client:
        source = (await client.get("/kv_event_sources")).json()["0"]
        subscriber = context.socket(zmq.SUB)
        subscriber.subscribe(source["topic"])
        subscriber.connect(source["endpoint"].replace("*", "127.0.0.1"))
        for number in range(25):
            prompt = [number % 4] * 40 + [number] * 60 + list(range(number, 40))
            body = {"model": "sim", "prompt": prompt, "max_tokens": 40}
            assert (await client.post("/v1/completions", json=body)).status_code == 200
        replay = context.socket(zmq.DEALER)
        replay.connect(source["replay_endpoint"].replace("*", "127.0.0.1"))
        await replay.send_multipart([b"", (0).to_bytes(8, "big")])
        held, tokens, expected = Counter(), {}, 0
        while True:
            frames = await asyncio.wait_for(replay.recv_multipart(), 10)
            if frames[2] == b"\xff" * 8:
                break
            assert frames[1] == b"kv-events"
            assert int.from_bytes(frames[2], "big") == expected
            expected += 1
            apply(held, tokens, frames[3])
        pool = replica.engine.pool
        mine = {key: 1 + len(pool.copies.get(key, ())) for key in pool.cached}
        assert held == mine
        assert len(tokens) > len(held) > 10
        assert prompt[:16] in list(tokens.values())
        await client.post("/reset_prefix_cache")
        last = -1
        while last < expected:
            _, sequence, payload = await asyncio.wait_for(subscriber.recv_multipart(), 10)
            last = int.from_bytes(sequence, "big")
        apply(held, tokens, payload)
        assert not held
        subscriber.close(0)
        replay.close(0)


async def test_adapter_and_salt_are_told(fleet, context):
    replica = fleet.replicas[0]
    replica.adapters.append("tuned")
    events = []
    replica.events.flush = lambda: events.extend(replica.events._pending)
    async with httpx.AsyncClient(base_url=fleet.urls[0], timeout=20) as client:
        body = {"model": "tuned", "prompt": [1] * 40, "max_tokens": 1, "cache_salt": "s"}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
    assert events[0].lora_name == "tuned"
    assert events[0].extra_keys == [("tuned", "s"), ("tuned",)]


async def test_a_restart_begins_anew(fleet):
    replica = fleet.replicas[0]
    port = replica.events.port
    async with httpx.AsyncClient(base_url=fleet.urls[0], timeout=20) as client:
        body = {"model": "sim", "prompt": [1] * 40, "max_tokens": 1}
        await client.post("/v1/completions", json=body)
        assert replica.events._sequence == 1
    await replica.restart()
    assert replica.events.port == port
    assert replica.events._sequence == 0


async def test_no_sources_when_off():
    async with SimulatedFleet(1) as fleet, httpx.AsyncClient() as client:
        assert (await client.get(fleet.urls[0] + "/kv_event_sources")).status_code == 404


async def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=str(port)):
            await SimulatedFleet(1, kv_events_port=port).start()
