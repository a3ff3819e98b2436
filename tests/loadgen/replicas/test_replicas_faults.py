"""Each fault does what it says, and ends when it is cleared."""

import asyncio

import httpx
import pytest

from loadgen.replicas import SimulatedFleet

BODY = {"model": "sim", "prompt": "word " * 40, "max_tokens": 4}


@pytest.fixture
async def fleet():
    async with SimulatedFleet(2) as running:
        yield running


@pytest.fixture
async def client():
    async with httpx.AsyncClient(timeout=20) as found:
        yield found


async def ask(client, url, **more):
    return await client.post(url + "/v1/completions", json={**BODY, **more})


async def test_die_and_start(fleet, client):
    replica, url = fleet.replicas[0], fleet.urls[0]
    assert (await ask(client, url)).status_code == 200
    before = replica.start_time
    waiting = asyncio.ensure_future(ask(client, url, max_tokens=60_000))
    await replica.until(lambda it: bool(it.engine.running))
    await replica.die()
    with pytest.raises(httpx.RemoteProtocolError):
        await waiting
    with pytest.raises(httpx.ConnectError):
        await ask(client, url)
    await replica.start()
    assert fleet.urls[0] == url
    usage = (await ask(client, url)).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert replica.start_time > before


async def test_restart_over_http(fleet, client):
    replica, url = fleet.replicas[0], fleet.urls[0]
    before = replica.start_time
    await ask(client, url)
    fault = {"kind": "restart", "replica": 0}
    assert (await client.post(fleet.urls[1] + "/_sim/fault", json=fault)).status_code == 200
    await replica.until(lambda it: it.alive and it.start_time != before)
    assert (await ask(client, url)).json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_freeze_and_clear(fleet, client):
    replica = fleet.replicas[0]
    running = asyncio.ensure_future(ask(client, fleet.urls[0], max_tokens=500))
    await replica.until(lambda it: bool(it.engine.running))
    await replica.freeze()
    tokens = replica.engine.counters.generation_tokens
    arrived = len(replica.requests)
    frozen = asyncio.ensure_future(client.get(fleet.urls[0] + "/health"))
    await replica.until(lambda it: len(it.requests) > arrived)
    assert (await ask(client, fleet.urls[1])).status_code == 200
    assert not frozen.done()
    assert not running.done()
    assert replica.engine.counters.generation_tokens == tokens
    await replica.clear()
    assert (await frozen).status_code == 200
    assert (await running).json()["usage"]["completion_tokens"] == 500


async def test_a_frozen_replica_can_be_cleared_over_http(client):
    async with SimulatedFleet(1) as fleet:
        url = fleet.urls[0]
        await client.post(url + "/_sim/fault", json={"kind": "freeze"})
        await fleet.replicas[0].until(lambda it: it.frozen)
        waiting = asyncio.ensure_future(ask(client, url))
        await fleet.replicas[0].until(lambda it: it.requests[-1].path == "/v1/completions")
        assert (await client.post(url + "/_sim/fault", json={"kind": "clear"})).status_code == 200
        assert (await waiting).status_code == 200


async def test_slow(fleet, client):
    replica = fleet.replicas[0]
    await replica.slow(1e9)
    waiting = asyncio.ensure_future(ask(client, fleet.urls[0]))
    await replica.until(lambda it: bool(it.engine.running))
    assert replica.engine.counters.generation_tokens == 0
    await replica.clear()
    assert (await waiting).status_code == 200


async def test_refuse_keeps_what_is_connected(fleet, client):
    url = fleet.urls[0]
    await ask(client, url)
    await fleet.replicas[0].refuse()
    assert (await ask(client, url)).status_code == 200
    async with httpx.AsyncClient() as other:
        with pytest.raises(httpx.ConnectError):
            await ask(other, url)
        # By the connection that stands.
        assert (await client.post(url + "/_sim/fault", json={"kind": "clear"})).status_code == 200
        await fleet.replicas[0].until(lambda it: it.listening)
        assert (await ask(other, url)).status_code == 200


async def test_error_rate(fleet, client):
    replica = fleet.replicas[0]
    await replica.fail(status=503, count=2)
    answers = [await ask(client, fleet.urls[0]) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert answers[0].json()["error"]["type"] == "ServiceUnavailableError"
    await replica.fail(rate=0.5)
    codes = [(await ask(client, fleet.urls[0])).status_code for _ in range(40)]
    assert 5 < codes.count(500) < 35
    assert (await client.get(fleet.urls[0] + "/health")).status_code == 200
    await replica.clear()
    assert (await ask(client, fleet.urls[0])).status_code == 200


async def test_garbage(fleet, client):
    await fleet.replicas[0].garbage(count=1)
    with pytest.raises(httpx.RemoteProtocolError):
        await ask(client, fleet.urls[0])
    assert (await ask(client, fleet.urls[0])).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_die_mid_stream(fleet, client, stream):
    replica = fleet.replicas[0]
    await replica.die_mid_stream(after_tokens=2, count=1)
    seen = b""
    with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012
        path = fleet.urls[0] + "/v1/completions"
        async with client.stream("POST", path, json={**BODY, "stream": stream}) as answer:
            async for part in answer.aiter_bytes():
                seen += part
    assert seen.count(b'"text"') == (2 if stream else 0)
    assert b"DONE" not in seen
    assert (await ask(client, fleet.urls[0])).status_code == 200
    await replica.until(lambda it: not it.engine.running)


@pytest.mark.parametrize("tokens", [0, 2])
async def test_die_mid_stream_after_just_so_many_tokens(client, tokens):
    """Though the steps are over so fast that many tokens go out at once."""
    async with SimulatedFleet(1, time_scale=1000.0) as fleet:
        await fleet.replicas[0].die_mid_stream(after_tokens=tokens, count=1)
        seen = b""
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012
            path, body = fleet.urls[0] + "/v1/completions", {**BODY, "max_tokens": 500}
            async with client.stream("POST", path, json={**body, "stream": True}) as answer:
                async for part in answer.aiter_bytes():
                    seen += part
    assert seen.count(b'"text"') == tokens


async def test_die_mid_stream_ends_all_answers_of_a_request(fleet, client):
    replica = fleet.replicas[0]
    await replica.die_mid_stream(after_tokens=2)
    seen = b""
    with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012
        path, body = fleet.urls[0] + "/v1/completions", {**BODY, "n": 3, "stream": True}
        async with client.stream("POST", path, json=body) as answer:
            async for part in answer.aiter_bytes():
                seen += part
    for index in range(3):
        assert seen.count(b'"index":%d' % index) <= 2
    await replica.until(lambda it: not it.engine.running)
    assert not replica.driver._followed


async def test_unhealthy(fleet, client):
    url = fleet.urls[0]
    await client.post(url + "/_sim/fault", json={"kind": "unhealthy"})
    await fleet.replicas[0].until(lambda it: not it.healthy)
    assert (await client.get(url + "/health")).status_code == 503
    await client.post(url + "/_sim/fault", json={"kind": "clear"})
    await fleet.replicas[0].until(lambda it: it.healthy)
    assert (await client.get(url + "/health")).status_code == 200


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"kind": "explode"}, "die_mid_stream"),
        ({}, "kind"),
        ([], "object"),
        ({"kind": "die", "replica": 2}, "replica"),
        ({"kind": "slow"}, "factor"),
        ({"kind": "slow", "factr": 3}, "factr"),
        ({"kind": "slow", "factor": 0}, "factor"),
        ({"kind": "slow", "factor": 2, "rate": 0.5}, "'rate'"),
        ({"kind": "error_rate", "rate": 7}, "rate"),
        ({"kind": "error_rate", "rate": "1"}, "rate"),
        ({"kind": "error_rate", "status": 9999}, "status"),
        ({"kind": "error_rate", "status": 200}, "status"),
        ({"kind": "garbage", "count": -2}, "count"),
        ({"kind": "die_mid_stream", "after_tokens": -1}, "after_tokens"),
        ({"kind": "restart", "downtime": -1}, "downtime"),
    ],
)
async def test_a_wrong_fault_is_refused(fleet, client, body, told):
    answer = await client.post(fleet.urls[0] + "/_sim/fault", json=body)
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]
    assert fleet.replicas[0].alive
    assert (await ask(client, fleet.urls[0])).status_code == 200


async def test_a_wrong_fault_is_refused_in_python(fleet):
    with pytest.raises(ValueError, match="rate"):
        await fleet.replicas[0].fail(rate=7)
    with pytest.raises(ValueError, match="factor"):
        await fleet.replicas[0].slow(-1)


async def test_requests_are_kept_as_they_came(client):
    async with SimulatedFleet(1, keep_requests=2) as fleet:
        for number in range(3):
            await ask(client, fleet.urls[0], max_tokens=number + 1, unknown={"kept": True})
        kept = fleet.replicas[0].requests
        assert [received.json()["max_tokens"] for received in kept] == [2, 3]
        assert kept[-1].path == "/v1/completions"
        assert kept[-1].header("Content-Type") == "application/json"
        assert kept[-1].json()["unknown"] == {"kept": True}


async def test_bad_settings():
    with pytest.raises(ValueError, match="count"):
        SimulatedFleet(0)
    with pytest.raises(ValueError, match="time_scale"):
        SimulatedFleet(1, time_scale=0)
    with pytest.raises(ValueError, match="default_output_tokens"):
        SimulatedFleet(1, default_output_tokens=0)
    with pytest.raises(ValueError, match="first_port"):
        SimulatedFleet(2, first_port=65_535)
    with pytest.raises(ValueError, match="kv_events_port"):
        SimulatedFleet(1, kv_events_port=65_000)
