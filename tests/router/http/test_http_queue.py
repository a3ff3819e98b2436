"""Requests that wait in the queue, over real sockets: every way in, and every way out."""

from __future__ import annotations

import asyncio
import json

import pytest
from http_world import (
    END,
    SSE_HEAD,
    Connect,
    MakeReplica,
    MakeRouter,
    Raw,
    ScriptedReplica,
    books,
    chunk,
    event,
    exchanges,
    post,
    sized,
    until,
)

from router.app import App
from router.http.state import QUEUED

PATH = "/v1/chat/completions"
TOKEN = chunk(event(choices=[{"delta": {"content": "a"}}]))
ANSWER = (SSE_HEAD, TOKEN, END)
LOW = "x-dynamo-request-priority: -1"


def body(tokens: int = 1000, *, text: str = "a", stream: bool = True, **fields: object) -> bytes:
    content = (text * 4 * tokens)[: 4 * tokens]
    message = {"role": "user", "content": content}
    return json.dumps({"model": "m", "stream": stream, "messages": [message], **fields}).encode()


async def waits(app: App, count: int = 1) -> None:
    await until(lambda: app.gateway.queue.queue.waiting == count)
    assert sum(one.state is QUEUED for one in exchanges(app)) == count


def knows_sessions(app: App) -> None:
    """What begins like anything is known to go on, so that it waits at the door."""
    beginnings = app.gateway.queue.queue.door.sessions.beginnings
    for _ in range(50):
        beginnings.began(0)
        beginnings.went_on(0)


@pytest.fixture
async def steps(replicas: MakeReplica) -> ScriptedReplica:
    """Answers with a head at once, a token after one step, its end after another."""
    replica = await replicas()
    replica.reply_in_steps(*ANSWER)
    return replica


async def busy(app: App, connect: Connect, replica: ScriptedReplica) -> Raw:
    """A request of high enough priority is sent there, and shows no first token."""
    first = await connect(app)
    first.send(post(PATH, body(1000, text="first")))
    await replica.asked(1)
    return first


async def parked(app: App, connect: Connect, replica: ScriptedReplica) -> tuple[Raw, Raw]:
    """(a session that fills the memory, one that waits at the door for it)"""
    knows_sessions(app)
    await until(lambda: app.gateway.queue.queue.door.works)
    first = await connect(app)
    first.send(post(PATH, body(3000, text="one"), "x-session-id: one"))
    await replica.asked(1)
    second = await connect(app)
    second.send(post(PATH, body(3000, text="two"), "x-session-id: two"))
    await waits(app)
    return first, second


async def test_low_priority_waits_for_the_first_token_of_what_was_sent(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica
) -> None:
    app = await router(steps, explain_headers=True)
    first = await busy(app, connect, steps)
    low = await connect(app)
    low.send(post(PATH, body(1000, text="low"), LOW, "x-warmroute-explain: 1"))
    await waits(app)
    assert len(steps.received) == 1
    steps.step()
    await steps.asked(2)
    await until(lambda: not app.gateway.queue.queue.waiting)
    for _ in range(3):
        steps.step()
    assert (await first.answer())[0] == 200
    status, headers, _ = await low.answer()
    assert status == 200
    assert float(headers["x-warmroute-queue-seconds"]) > 0.0
    assert headers["x-warmroute-queue-ahead"] == "0"
    assert app.gateway.queue.queue.outcomes["held"] == 1


async def test_one_class_is_sent_at_once(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica
) -> None:
    app = await router(steps)
    clients = [await connect(app) for _ in range(8)]
    for number, client in enumerate(clients):
        client.send(post(PATH, body(1000, text=str(number))))
    await steps.asked(8)
    assert app.gateway.queue.queue.outcomes["direct"] == 8
    for _ in range(16):
        steps.step()
    for client in clients:
        assert (await client.answer())[0] == 200


async def test_a_new_session_waits_at_the_door_and_one_in_progress_does_not(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica
) -> None:
    app = await router(steps, kv_cache_tokens=5000)
    first, second = await parked(app, connect, steps)
    again = await connect(app)
    again.send(post(PATH, body(10, text="one"), "x-session-id: one"))
    await steps.asked(2)
    for _ in range(4):
        steps.step()
    assert (await first.answer())[0] == 200
    assert (await again.answer())[0] == 200
    # Nobody is known to come back from a pause: before long the memory is the next session's.
    app.gateway.queue.queue.door.sessions.set_horizon(0.0)
    app.gateway.queue.queue.release(0.0)
    await steps.asked(3)
    for _ in range(2):
        steps.step()
    assert (await second.answer())[0] == 200
    assert app.gateway.queue.queue.outcomes["parked"] == 1


@pytest.mark.parametrize("where", ["door", "lane"])
@pytest.mark.parametrize("how", ["close", "vanish"])
async def test_a_client_that_leaves_while_it_waits_leaves_nothing(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica, where: str, how: str
) -> None:
    app = await router(steps, kv_cache_tokens=5000)
    if where == "door":
        first, waiting = await parked(app, connect, steps)
    else:
        first = await busy(app, connect, steps)
        waiting = await connect(app)
        waiting.send(post(PATH, body(1000, text="low"), LOW))
        await waits(app)
    getattr(waiting, how)()
    await until(lambda: not app.gateway.queue.queue.waiting)
    assert app.gateway.queue.queue.outcomes["gone"] == 1
    assert app.fleet.loads[0].in_flight == 1
    for _ in range(2):
        steps.step()
    assert (await first.answer())[0] == 200


@pytest.mark.usefixtures("quick_sweep")
async def test_what_waits_for_too_long_gets_503(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica
) -> None:
    app = await router(steps, queue_timeout=0.1)
    first = await busy(app, connect, steps)
    low = await connect(app)
    status, headers, answer = await low.ask(post(PATH, body(1000, text="low"), LOW))
    assert status == 503
    assert "retry-after" in headers
    assert json.loads(answer)["error"]["code"] == "overloaded"
    for _ in range(2):
        steps.step()
    assert (await first.answer())[0] == 200


@pytest.mark.parametrize("path", [PATH, "/v1/messages"])
async def test_more_than_may_wait_get_429_and_are_told_when_to_come_again(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica, path: str
) -> None:
    app = await router(steps, queue_limit=0)
    first = await busy(app, connect, steps)
    low = await connect(app)
    asked = body(1000, text="low", max_tokens=5)
    status, headers, answer = await low.ask(post(path, asked, LOW))
    assert status == 429
    assert 1 <= int(headers["retry-after"]) <= 60
    error = json.loads(answer)["error"]
    assert "come again in" in error["message"]
    if path == PATH:
        assert error["code"] == "overloaded"
    else:
        assert error["type"] == "overloaded_error"
    for _ in range(2):
        steps.step()
    assert (await first.answer())[0] == 200


async def test_a_client_that_cannot_wait_is_refused_in_time(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica
) -> None:
    app = await router(steps, prefill_rate=1000)
    first = await busy(app, connect, steps)
    hasty = await connect(app)
    status, headers, _ = await hasty.ask(post(PATH, body(10, text="hasty"), "x-slo-ttft-ms: 500"))
    assert status == 429
    assert headers["retry-after"] == "1"
    patient = await connect(app)
    patient.send(post(PATH, body(10, text="patient"), "x-slo-ttft-ms: 5000"))
    await steps.asked(2)
    for _ in range(4):
        steps.step()
    assert (await first.answer())[0] == 200
    assert (await patient.answer())[0] == 200


async def test_a_router_that_stops_refuses_at_the_door_and_sends_what_is_held(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica
) -> None:
    app = await router(steps, kv_cache_tokens=5000, drain_timeout=10.0)
    first, second = await parked(app, connect, steps)
    low = await connect(app)
    low.send(post(PATH, body(1000, text="x"), LOW, "x-session-id: one"))
    await waits(app, 2)
    stopping = asyncio.create_task(app.front.stop())
    status, _, answer = await second.answer()
    assert status == 503
    assert "stopping" in json.loads(answer)["error"]["message"]
    for _ in range(4):
        steps.step()
    assert (await first.answer())[0] == 200
    assert (await low.answer())[0] == 200
    await stopping


async def test_what_waits_for_a_replica_that_leaves_goes_to_another(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica, replicas: MakeReplica
) -> None:
    other = await replicas()
    other.reply_in_steps(*ANSWER)
    app = await router(steps, other)
    clients = []
    for number, replica in enumerate((steps, other)):
        client = await connect(app)
        client.send(post(PATH, body(1000, text=str(number))))
        await replica.asked(1)
        clients.append(client)
    held = []
    for number in range(4):
        client = await connect(app)
        client.send(post(PATH, body(500, text=f"low {number}"), LOW))
        held.append(client)
        await waits(app, number + 1)
    app.fleet.remove(steps.url)
    assert app.gateway.queue.queue.gate(0).lane.size == 0
    assert app.gateway.queue.queue.gate(1).lane.size == 4
    for number in range(5):
        await other.asked(number + 1)
        other.step()  # its token
        other.step()  # its end
    for _ in range(2):
        steps.step()
    for client in (*clients, *held):
        assert (await client.answer())[0] == 200
    order = [json.loads(one.body)["messages"][0]["content"][:5] for one in other.received[1:]]
    assert order == [f"low {number}" for number in range(4)]


async def test_a_failed_attempt_goes_elsewhere_before_what_waits_there(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica, replicas: MakeReplica
) -> None:
    dead = await replicas()
    dead.hang()
    app = await router(dead, steps)
    one = await connect(app)
    one.send(post(PATH, body(1000, text="one")))
    await dead.asked(1)
    two = await connect(app)
    two.send(post(PATH, body(1000, text="two")))
    await steps.asked(1)
    lows = []
    for number in range(2):  # by turns: the first waits for the replica that dies
        low = await connect(app)
        low.send(post(PATH, body(1000, text=f"low {number}"), LOW))
        lows.append(low)
        await waits(app, number + 1)
    await dead.stop()
    # The one that failed does not wait behind low priority; depth lets it go at once.
    await steps.asked(2)
    assert json.loads(steps.received[1].body)["messages"][0]["content"].startswith("one")
    for _ in range(8):
        steps.step()
    for client in (one, two, *lows):
        assert (await client.answer())[0] == 200


async def test_an_answer_that_is_no_stream_frees_its_gate_by_the_clock(
    router: MakeRouter, connect: Connect, replicas: MakeReplica
) -> None:
    replica = await replicas()
    replica.hang()
    app = await router(replica, prefill_rate=10_000)
    first = await connect(app)
    first.send(post(PATH, body(2000, text="whole", stream=False)))
    await replica.asked(1)
    low = await connect(app)
    low.send(post(PATH, body(1000, text="low"), LOW))
    await replica.asked(2)  # after 0.2 s, though nothing was answered
    assert app.gateway.queue.queue.outcomes["held"] == 1
    first.close()
    low.close()


async def test_there_is_no_door_beside_unknown_sessions_or_a_tier_behind_the_gpu(
    router: MakeRouter,
    connect: Connect,
    steps: ScriptedReplica,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.http.queueing.UNSHARED_S", 0.0)
    app = await router(steps, kv_cache_tokens=5000)
    queue = app.gateway.queue
    first, second = await parked(app, connect, steps)
    queue.sessions_shared = lambda: False
    await steps.asked(2)  # at the next look
    assert queue.kv_wanted(0) is None
    queue.sessions_shared = lambda: True
    await until(lambda: queue.kv_wanted(0) is not None)
    app.fleet.members()[0].offload_tokens = 1
    assert queue.kv_wanted(0) is None
    for _ in range(4):
        steps.step()
    assert (await first.answer())[0] == 200
    assert (await second.answer())[0] == 200


async def test_paths_that_are_balanced_do_not_wait(
    router: MakeRouter, connect: Connect, replicas: MakeReplica
) -> None:
    replica = await replicas()
    replica.reply(sized(b"{}"))
    app = await router(replica)
    client = await connect(app)
    assert (await client.ask(post("/v1/embeddings", b'{"model":"m","input":"x"}')))[0] == 200
    assert not any(app.gateway.queue.queue.outcomes.values())
    assert not any(value for name, value in books(app).items() if "gate" in name)


def responses(
    *, follows: str = "", tokens: int = 3000, text: str = "x", session: str = ""
) -> bytes:
    asked: dict[str, object] = {"model": "m", "stream": True, "input": (text * 4 * tokens)}
    if follows:
        asked["previous_response_id"] = follows
    return post("/v1/responses", json.dumps(asked).encode(), *([session] if session else []))


@pytest.mark.parametrize("where", ["door", "lane"])
async def test_a_response_that_waits_for_the_only_replica_gets_503_when_it_leaves(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica, where: str
) -> None:
    app = await router(steps, kv_cache_tokens=5000, queue_door=0.9 if where == "door" else 0)
    knows_sessions(app)
    first = await busy(app, connect, steps)
    second = await connect(app)
    if where == "door":
        await until(lambda: app.gateway.queue.queue.door.works)
        third = await connect(app)
        third.send(post(PATH, body(3000, text="one"), "x-session-id: one"))
        await steps.asked(2)
        second.send(responses(session="x-session-id: two"))
    else:
        second.send(
            post("/v1/responses", json.dumps({"model": "m", "input": "x" * 4000}).encode(), LOW)
        )
    await waits(app)
    app.fleet.remove(steps.url)
    status, _, answer = await second.answer()
    assert status == 503
    assert b"no replica" in answer.lower()
    for _ in range(4):
        steps.step()
    assert (await first.answer())[0] == 200


async def test_what_waits_is_sent_to_the_last_resort_where_no_replica_is_usable(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica
) -> None:
    app = await router(steps, kv_cache_tokens=5000)
    first, second = await parked(app, connect, steps)
    low = await connect(app)
    low.send(post(PATH, body(1000, text="x"), LOW, "x-session-id: one"))
    await waits(app, 2)
    while app.fleet.usable:
        app.fleet.failed(0, "died", asyncio.get_running_loop().time())
    assert app.fleet.last_resort("m") == 1
    app.gateway.queue.tick(asyncio.get_running_loop().time())
    assert app.gateway.queue.queue.waiting == 2
    for _ in range(2):
        steps.step()
    assert (await first.answer())[0] == 200
    await steps.asked(2)
    for _ in range(2):
        steps.step()
    assert (await low.answer())[0] == 200
    app.gateway.queue.queue.door.sessions.set_horizon(0.0)
    app.gateway.queue.queue.release(asyncio.get_running_loop().time())
    await steps.asked(3)
    for _ in range(2):
        steps.step()
    assert (await second.answer())[0] == 200


@pytest.mark.usefixtures("quick_sweep")
async def test_a_stream_that_began_ends_visibly_when_its_next_attempt_waits_too_long(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica, replicas: MakeReplica
) -> None:
    dead = await replicas()
    dead.hang(SSE_HEAD, chunk(b": ping\n\n"))
    app = await router(dead, steps, queue_timeout=0.1)
    moved = await connect(app)
    moved.send(post(PATH, body(1000, text="moved")))
    await dead.asked(1)
    assert (await moved.head())[0] == 200
    other = await connect(app)
    other.send(post(PATH, body(5000, text="other"), "x-api-key: another"))
    await steps.asked(1)
    app.gateway.queue.queue.came(0, "another", asyncio.get_running_loop().time())
    await dead.stop()
    await waits(app)
    async with asyncio.timeout(10):
        rest = await moved.reader.read()
    assert b"HTTP/1.1" not in rest
    assert b"no other replica" in rest
    assert not rest.endswith(b"0\r\n\r\n")
    for _ in range(2):
        steps.step()
    assert (await other.answer())[0] == 200


async def test_a_client_that_leaves_while_its_next_attempt_waits_touches_no_trial(
    router: MakeRouter,
    connect: Connect,
    steps: ScriptedReplica,
    replicas: MakeReplica,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dead = await replicas()
    dead.hang()
    app = await router(dead, steps)
    moved = await connect(app)
    moved.send(post(PATH, body(1000, text="moved")))
    await dead.asked(1)
    other = await connect(app)
    other.send(post(PATH, body(5000, text="other"), "x-api-key: another"))
    await steps.asked(1)
    await dead.stop()
    await waits(app)
    withdrawn: list[int] = []
    monkeypatch.setattr(app.fleet, "withdrawn", withdrawn.append)
    moved.close()
    await until(lambda: not app.gateway.queue.queue.waiting)
    assert withdrawn == [1]  # where it was held, and not where it failed before
    for _ in range(2):
        steps.step()
    assert (await other.answer())[0] == 200


async def test_bodies_that_wait_leave_memory_for_sessions_in_progress(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica
) -> None:
    app = await router(
        steps, kv_cache_tokens=5000, max_body=1 << 20, body_memory=1 << 20, body_rate=0
    )
    first, second = await parked(app, connect, steps)
    third = await connect(app)
    status, headers, answer = await third.ask(
        post(PATH, body(130_000, text="3"), "x-session-id: three")
    )
    assert status == 429
    assert "retry-after" in headers
    assert json.loads(answer)["error"]["code"] == "overloaded"
    again = await connect(app)
    again.send(post(PATH, body(130_000, text="one"), "x-session-id: one"))
    await steps.asked(2)
    second.close()
    for _ in range(4):
        steps.step()
    assert (await first.answer())[0] == 200
    assert (await again.answer())[0] == 200
