"""A real Envoy in front of simulated replicas sends each request where the picker says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from picker_world import (
    CHAT,
    LARGE,
    Maker,
    MakeWorld,
    chat,
    kill,
    lines,
    ports_of,
    served,
    until,
)

from router.app import App
from router.tracing.tracer import Tracer

DUPLEX = "FULL_DUPLEX_STREAMED"
MODES = [(DUPLEX, DUPLEX), (DUPLEX, "NONE"), ("BUFFERED", "STREAMED"), ("BUFFERED", "BUFFERED")]


def landed(app: App) -> dict[str, int]:
    """By replica: requests that the picker's own records say went there."""
    found: dict[str, int] = {}
    for row in app.telemetry.rows():
        name = row.series.replica
        found[name] = found.get(name, 0) + sum(row.codes.values())
    return found


@pytest.mark.parametrize(("request_mode", "response_mode"), MODES)
async def test_a_session_stays_where_its_prefix_is(
    world: MakeWorld, request_mode: str, response_mode: str
) -> None:
    made = await world(3, envoy={"request": request_mode, "response": response_mode})
    for session in range(3):
        text = f"session {session}: " + "the same long beginning " * 200
        for turn in range(3):
            answer = await made.ask(f"{text} and turn {turn}")
            assert answer.status_code == 200
            assert answer.json()["usage"]["prompt_tokens"] > 1000
    # The client may have its answer before the picker has heard of its end.
    await until(lambda: len(made.records) == 9)
    got = served(made.fleet)
    assert made.served_by == {"first": 9}
    assert got == [landed(made.app).get(f"127.0.0.1:{p}", 0) for p in ports_of(made.fleet)]
    # Each session's second and third turn found the first one's prefix.
    hits = sum(replica.engine.counters.prefix_hits for replica in made.fleet.replicas)
    assert hits > 6 * 1000


async def test_a_stream_is_passed_on_and_learned_from(world: MakeWorld) -> None:
    made = await world()
    body = chat("hello", tokens=9, stream=True)
    async with made.client.stream("POST", CHAT, json=body) as response:
        events = await lines(response)
    assert events[-1]["usage"]["completion_tokens"] == 9
    await until(lambda: made.records)
    record = made.records[-1]
    assert (record.output_tokens, record.stream, record.outcome) == (9, True, "ok")
    assert 0 < record.ttft <= record.duration


@pytest.mark.parametrize("size", [60_000, 70_000, 1_000_000, 4_000_000])
async def test_a_large_body_passes_whole(world: MakeWorld, size: int) -> None:
    """Full duplex: the picker holds the answer back until it has the whole body, which is more than
    any window or buffer on the way has room for."""
    made = await world(1, fleet={"params": LARGE, "time_scale": 100.0})
    body = json.dumps(chat("word " * (size // 5))).encode()
    async with asyncio.timeout(15):
        answer = await made.client.post(
            CHAT, content=body, headers={"content-type": "application/json"}
        )
    assert answer.status_code == 200
    (got,) = [each for each in made.fleet.replicas[0].requests if each.path == CHAT]
    assert got.body == body


async def test_a_large_answer_passes_whole(world: MakeWorld) -> None:
    made = await world(1, fleet={"time_scale": 200.0})
    answer = await made.ask("x", tokens=40_000, ignore_eos=True)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 40_000
    assert len(answer.content) > 100_000


async def test_a_body_that_comes_slowly(world: MakeWorld) -> None:
    made = await world()
    body = json.dumps(chat("slow " * 30_000)).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", made.envoy.port)
    writer.write(
        b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % (CHAT.encode(), len(body))
    )
    step = len(body) // 5
    live = made.app.gateway.live
    for at in range(0, len(body), step):
        writer.write(body[at : at + step])
        if at + step < len(body):
            await until(lambda sent=at + step: live.body_bytes >= sent)  # type: ignore[misc]
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_client_that_leaves_while_it_sends(world: MakeWorld) -> None:
    made = await world()
    _, writer = await asyncio.open_connection("127.0.0.1", made.envoy.port)
    writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n{" % CHAT.encode())
    await until(lambda: made.app.gateway.live.body_bytes == 1)
    writer.close()
    await until(lambda: made.records)
    assert made.app.gateway.live.body_bytes == 0
    record = made.records[-1]
    assert (record.outcome, record.replica) == ("client_gone", "")


@pytest.mark.parametrize("response", [DUPLEX, "NONE"])
async def test_a_client_that_leaves_within_its_answer(world: MakeWorld, response: str) -> None:
    made = await world(1, envoy={"response": response})
    replica = made.fleet.replicas[0]
    # The engine would work on it for minutes.
    await replica.slow(500)
    body = chat("x", tokens=1000, stream=True)
    async with made.client.stream("POST", CHAT, json=body) as answer:
        assert answer.status_code == 200
        await until(lambda: made.app.fleet.loads[0].in_flight == 1)
    # maker.check: the books do not keep what nobody waits for.
    await until(lambda: made.app.fleet.loads[0].in_flight == 0)


async def test_an_answer_that_is_not_shown_is_in_the_books_until_the_engine_is_done(
    world: MakeWorld,
) -> None:
    made = await world(1, envoy={"response": "NONE"})
    replica = made.fleet.replicas[0]
    await replica.slow(2000)
    body = chat("x", tokens=400, stream=True, ignore_eos=True)
    async with made.client.stream("POST", CHAT, json=body) as answer:
        assert answer.status_code == 200
        load = made.app.fleet.loads[0]
        await until(lambda: made.records)
        read_at = made.app.fleet.members()[0].engine_at
        # Two more readings of the engine's metrics do not end it.
        await until(lambda: made.app.fleet.members()[0].engine_at > read_at)
        read_at = made.app.fleet.members()[0].engine_at
        await until(lambda: made.app.fleet.members()[0].engine_at > read_at)
        assert load.in_flight == 1
        await replica.slow(0.1)
        await answer.aread()
    await until(lambda: load.in_flight == 0)


@pytest.mark.parametrize(("fail_open", "mode"), [(True, "BUFFERED"), (False, DUPLEX)])
async def test_a_picker_that_dies_and_comes_back(
    world: MakeWorld, maker: Maker, fail_open: bool, mode: str
) -> None:
    made = await world(envoy={"fail_open": fail_open, "request": mode})
    assert (await made.ask("before")).status_code == 200
    kill(made.app)
    during = [(await made.ask(f"during {n}")).status_code for n in range(4)]
    assert during == [200 if fail_open else 500] * 4
    again = await maker.picker(*made.fleet.urls, port=made.app.port)
    # Envoy connects anew with the first request.
    async with asyncio.timeout(10):
        while not again.telemetry.served_by:
            await made.ask("after")
    assert (await made.ask("and then")).status_code == 200


async def test_a_replica_that_dies_is_passed_by(world: MakeWorld) -> None:
    # Its health is not looked at in time: Envoy finds out, and goes on down the picker's list.
    made = await world(3, health_interval=60.0, metrics_interval=60.0)
    text = "a long prefix " * 300
    assert (await made.ask(text)).status_code == 200
    first = served(made.fleet).index(1)
    await made.fleet.replicas[first].die()
    answer = await made.ask(text + "more")
    assert answer.status_code == 200
    await until(lambda: len(made.records) == 2)
    assert made.served_by == {"first": 1, "fallback": 1}
    record = made.records[-1]
    ports = ports_of(made.fleet)
    assert record.replica != f"127.0.0.1:{ports[first]}"
    assert record.retries == 1
    assert made.app.fleet.members()[first].faults.died == 1


async def test_only_of_the_subset(world: MakeWorld, maker: Maker) -> None:
    made = await world(3)
    ports = ports_of(made.fleet)
    front = await maker.envoy(made.app.port, made.fleet, subset=[ports[1], 1])
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{front.port}") as client:
        for number in range(6):
            assert (await client.post(CHAT, json=chat(f"{number}"))).status_code == 200
    assert served(made.fleet) == [0, 6, 0]
    nobody = await maker.envoy(made.app.port, made.fleet, subset=[1])
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{nobody.port}") as client:
        answer = await client.post(CHAT, json=chat("x"))
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "ServiceUnavailableError"


async def test_no_endpoint_is_told_in_the_apis_form(world: MakeWorld) -> None:
    made = await world(1)
    await made.fleet.replicas[0].die()
    await until(lambda: not made.app.fleet.usable)
    answer = await made.ask("x")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert answer.json()["error"]["code"] == 503
    other = await made.client.post(
        "/v1/messages", json={"model": "sim", "max_tokens": 1, "messages": []}
    )
    assert other.status_code == 503
    assert other.json()["type"] == "error"


async def test_what_would_be_too_late_gets_429(world: MakeWorld) -> None:
    made = await world(1, ttft_limit=0.001)
    answer = await made.ask("another " * 20_000)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "overloaded"
    assert served(made.fleet) == [0]


async def test_what_the_picker_answers_itself(world: MakeWorld) -> None:
    made = await world(explain_headers=True)
    models = await made.client.get("/v1/models")
    assert [card["id"] for card in models.json()["data"]] == ["sim"]
    refused = await made.client.post("/sleep")
    assert refused.status_code == 403
    wrong = await made.client.post(CHAT, content=b"{", headers={"content-type": "application/json"})
    assert wrong.status_code == 400
    embedded = await made.client.post("/v1/embeddings", json={"model": "sim", "input": "x"})
    assert embedded.status_code == 200
    explained = await made.client.post(CHAT, json=chat("x"), headers={"x-warmroute-explain": "1"})
    assert explained.headers["x-warmroute-replica"].startswith("127.0.0.1:")


async def test_fields_that_steer_kv_transfer_are_taken_out(world: MakeWorld) -> None:
    for mode in (DUPLEX, "BUFFERED"):
        made = await world(1, envoy={"request": mode})
        answer = await made.ask("x", kv_transfer_params={"remote_host": "10.0.0.1"})
        assert answer.status_code == 200
        (got,) = [each for each in made.fleet.replicas[0].requests if each.path == CHAT]
        body = got.json()
        assert "kv_transfer_params" not in body
        assert body["messages"] == [{"role": "user", "content": "x"}]


async def test_a_thousand_requests(world: MakeWorld) -> None:
    made = await world(4)
    most = asyncio.Semaphore(50)

    async def one(number: int) -> int:
        async with most:
            stream = number % 3 == 0
            text = f"session {number % 40} " + "with a beginning " * 40 + f"turn {number}"
            answer = await made.ask(text, stream=stream)
            return answer.status_code

    statuses = await asyncio.gather(*map(one, range(1000)))
    assert set(statuses) == {200}
    await until(lambda: sum(landed(made.app).values()) == 1000)
    assert made.served_by == {"first": 1000}
    got = served(made.fleet)
    assert got == [landed(made.app).get(f"127.0.0.1:{p}", 0) for p in ports_of(made.fleet)]


async def test_a_picker_that_stops_lets_answers_end(world: MakeWorld) -> None:
    made = await world(1)
    replica = made.fleet.replicas[0]
    await replica.slow(1000)
    body = chat("x", tokens=30, stream=True, ignore_eos=True)
    async with made.client.stream("POST", CHAT, json=body) as response:
        await until(lambda: made.app.fleet.loads[0].in_flight == 1)
        stopping = asyncio.create_task(made.app.stop())
        await until(lambda: made.app.gateway.closing)
        await replica.slow(0.1)
        events = await lines(response)
    assert events[-1]["usage"]["completion_tokens"] == 30
    await stopping


async def _hit_rate(ask: Any, fleet: Any) -> float:
    """Sessions of a few turns, in an order that does not depend on time."""
    for turn in range(5):
        for session in range(12):
            text = f"session {session} of several: " + "this is said in every turn. " * (
                30 + 20 * session
            )
            answer = await ask(text + "and this is new. " * 40 * turn)
            assert answer.status_code == 200
    counters = [replica.engine.counters for replica in fleet.replicas]
    return sum(c.prefix_hits for c in counters) / sum(c.prefix_queries for c in counters)


async def test_the_hit_rate_is_the_proxys(world: MakeWorld, maker: Maker) -> None:
    made = await world(3)
    picked = await _hit_rate(made.ask, made.fleet)
    other = await world(3)
    proxy = App(other.app.settings)
    await proxy.start()
    await proxy.ready()
    url = f"http://127.0.0.1:{proxy.port}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            routed = await _hit_rate(lambda text: client.post(CHAT, json=chat(text)), other.fleet)
    finally:
        await proxy.stop()
    assert picked > 0.5
    assert abs(picked - routed) < 0.01


async def test_a_policy_that_fails_is_told_and_costs_nothing(
    world: MakeWorld, complaints: list[str]
) -> None:
    complaints.append("request .* failed")
    made = await world(1)

    def choose(*_: object) -> None:
        raise RuntimeError("a policy may be anybody's code")

    kept = made.app.placer.policy.choose
    made.app.placer.policy.choose = choose  # type: ignore[assignment, method-assign]
    answer = await made.ask("x")
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the router failed on this request"
    made.app.placer.policy.choose = kept  # type: ignore[method-assign]
    assert (await made.ask("x")).status_code == 200


async def test_a_trace_goes_on_at_the_replica(world: MakeWorld) -> None:
    made = await world(1)
    made.app.gateway.tracer = Tracer(1.0, b"secret")
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    answer = await made.client.post(CHAT, json=chat("x"), headers=headers)
    assert answer.status_code == 200
    (got,) = [each for each in made.fleet.replicas[0].requests if each.path == CHAT]
    told = (got.header("traceparent") or "").split("-")
    assert told[1] == trace
    assert told[2] != "00f067aa0ba902b7"


async def test_each_request_is_diagnosed(world: MakeWorld) -> None:
    made = await world(2)
    rules = "Rules of the house. " * 200
    for step in range(3):
        system = {"role": "system", "content": f"It is 2026-11-29 10:00:0{step}. {rules}"}
        said = [
            {"role": "user", "content": "Mend it."},
            {"role": "user", "content": "more " * step},
        ]
        body = {**chat(""), "messages": [system, *said]}
        headers = {"x-session-id": "agent"}
        assert (await made.client.post(CHAT, json=body, headers=headers)).status_code == 200
        await until(lambda done=step: len(made.records) == done + 1)
    assert [record.miss_reason for record in made.records] == [
        "never_computed",
        "system_changed",
        "system_changed",
    ]
    assert made.app.auditor is not None
    assert made.app.diagnoser is not None
    assert made.app.diagnoser.tokens["system_changed"] > 1000
