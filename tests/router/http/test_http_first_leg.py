"""Prefill and decode apart: what both replicas are sent, and what becomes of each failure."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from http_world import (
    END,
    SSE_HEAD,
    Connect,
    MakeReplica,
    MakeRouter,
    Raw,
    Received,
    ScriptedReplica,
    chunk,
    event,
    exchanges,
    post,
    sized,
    until,
)

from router.app import App

PATH = "/v1/chat/completions"
PARAMS = {"do_remote_prefill": True, "remote_block_ids": [[1, 2]], "remote_engine_id": "P"}
TEXT = "one two three four five " * 3000
TOKEN = chunk(event(choices=[{"index": 0, "delta": {"content": "a"}}]))


def body(path: str = PATH, **fields: object) -> bytes:
    content: dict[str, object] = {"messages": [{"role": "user", "content": TEXT}]}
    if path == "/v1/completions":
        content = {"prompt": TEXT}
    elif path == "/v1/responses":
        content = {"input": TEXT}
    return json.dumps({"model": "m", **content, **fields}).encode()


def prefilled(params: object = PARAMS) -> bytes:
    return json.dumps({"choices": [], "kv_transfer_params": params}).encode()


def holds_streams(replica: ScriptedReplica) -> None:
    """Streams are held open after their first token; all else is answered."""

    async def handler(
        request: Received, _: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if request.json().get("stream") and "busy" in request.json():
            writer.write(SSE_HEAD + TOKEN)
            await replica.gate.acquire()
            writer.write(chunk(b"data: [DONE]\n\n") + END)
        else:
            writer.write(sized(b'{"choices":[],"id":"decoded"}'))

    replica.handler = handler


class World:
    """Decode replicas that are busy with a stream each, and prefill replicas."""

    def __init__(self, app: App, decode: list[ScriptedReplica], prefill: list[ScriptedReplica]):
        self.app = app
        self.decode = decode
        self.prefill = prefill
        self.busy: list[Raw] = []

    def count(self, outcome: str) -> int:
        apart = self.app.gateway.disaggregation
        assert apart is not None
        return apart.counts[outcome]

    def sent(self, replicas: list[ScriptedReplica]) -> list[Any]:
        """The bodies of requests that are not the busy streams."""
        bodies = [request.json() for replica in replicas for request in replica.received]
        return [one for one in bodies if "busy" not in one]


async def world(
    replicas: MakeReplica, router: MakeRouter, connect: Connect, prefills: int, decodes: int
) -> World:
    decode = [await replicas() for _ in range(decodes)]
    prefill = [await replicas() for _ in range(prefills)]
    urls = tuple(one.url for one in prefill)
    app = await router(*decode, prefill=urls, breaker_failures=100)
    await until(lambda: app.fleet.usable.bit_count() == prefills + decodes)
    made = World(app, decode, prefill)
    for replica in decode:
        holds_streams(replica)
    for replica in prefill:
        replica.reply(sized(prefilled()))
    for _ in decode:
        client = await connect(app)
        small = {"role": "user", "content": "x"}
        asked = {"model": "m", "stream": True, "busy": 1, "messages": [small]}
        client.send(post(PATH, json.dumps(asked).encode()))
        await client.head()
        made.busy.append(client)
    return made


async def end(made: World) -> None:
    for replica in made.decode:
        replica.gate.release()
        replica.gate.release()
    for client in made.busy:
        client.close()


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        (PATH, "max_tokens"),
        ("/v1/completions", "max_tokens"),
        ("/v1/messages", "max_tokens"),
        ("/v1/responses", "max_output_tokens"),
    ],
)
async def test_both_legs_of_each_api(
    replicas: MakeReplica, router: MakeRouter, connect: Connect, path: str, limit: str
) -> None:
    made = await world(replicas, router, connect, 1, 1)
    client = await connect(made.app)
    asked = {limit: 99, "min_tokens": 5, "temperature": 0.5}
    status, _, answer = await client.ask(post(path, body(path, **asked), "X-Request-Id: abc"))
    assert (status, json.loads(answer)["id"]) == (200, "decoded")
    # The prefill replica computes one token and keeps the blocks.
    [first] = made.sent(made.prefill)
    assert first[limit] == 1
    assert first["stream"] is False
    assert "min_tokens" not in first
    assert first["temperature"] == 0.5
    assert first["kv_transfer_params"]["do_remote_decode"] is True
    # The decode replica is sent what the client sent, and where the blocks are.
    [second] = made.sent(made.decode)
    assert second == {**json.loads(body(path, **asked)), "kv_transfer_params": PARAMS}
    both = (made.prefill[0].received[-1], made.decode[0].received[-1])
    ids = [one.header("x-request-id") for one in both]
    assert ids == ["abc", "abc"]
    assert made.count("handed_over") == 1
    await end(made)


async def test_a_clients_own_params_reach_nobody(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    made = await world(replicas, router, connect, 1, 1)
    client = await connect(made.app)
    forged = {"do_remote_prefill": True, "remote_host": "evil"}
    assert (await client.ask(post(PATH, body(kv_transfer_params=forged))))[0] == 200
    assert "evil" not in json.dumps(made.sent(made.prefill) + made.sent(made.decode))
    await end(made)


@pytest.mark.parametrize("how", ["refuses", "closes", "500", "garbage"])
async def test_prefill_fails_another_prefills(
    replicas: MakeReplica, router: MakeRouter, connect: Connect, how: str
) -> None:
    made = await world(replicas, router, connect, 2, 1)
    for replica in made.prefill[:1]:
        await fail(replica, how)
    client = await connect(made.app)
    for _ in range(2):
        assert (await client.ask(post(PATH, body(user="a"))))[0] == 200
    assert all(one["kv_transfer_params"] == PARAMS for one in made.sent(made.decode))
    await end(made)


@pytest.mark.parametrize("how", ["refuses", "closes", "500", "garbage"])
async def test_all_prefills_fail_the_decode_replica_prefills(
    replicas: MakeReplica, router: MakeRouter, connect: Connect, how: str
) -> None:
    made = await world(replicas, router, connect, 2, 1)
    for replica in made.prefill:
        await fail(replica, how)
    client = await connect(made.app)
    assert (await client.ask(post(PATH, body())))[0] == 200
    [second] = made.sent(made.decode)
    assert "kv_transfer_params" not in second
    assert made.count("failed") == 2
    await end(made)


async def fail(replica: ScriptedReplica, how: str) -> None:
    if how == "refuses":
        await replica.stop()
    elif how == "closes":
        replica.reply_and_close()
    elif how == "500":
        replica.reply(sized(b"{}", "500 Oops"))
    else:
        replica.reply(sized(b"not JSON"))


async def test_no_params_is_served_and_an_alarm(
    replicas: MakeReplica, router: MakeRouter, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    made = await world(replicas, router, connect, 1, 1)
    made.prefill[0].reply(sized(prefilled(None)))
    client = await connect(made.app)
    assert (await client.ask(post(PATH, body())))[0] == 200
    assert made.count("no_params") == 1
    assert "answers without kv_transfer_params" in caplog.text
    assert "kv_transfer_params" not in made.sent(made.decode)[0]
    await end(made)


async def test_decode_fails_and_the_params_are_not_used_twice(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    """Blocks that the first one may have fetched may be another prompt's by now."""
    made = await world(replicas, router, connect, 1, 2)
    given = iter(range(100))

    async def prefill(_: Received, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sized(prefilled({**PARAMS, "serial": next(given)})))

    made.prefill[0].handler = prefill
    failed: list[ScriptedReplica] = []
    for replica in made.decode:
        answers = replica.handler
        assert answers is not None

        async def once(
            request: Received,
            reader: asyncio.StreamReader,
            writer: asyncio.StreamWriter,
            replica: ScriptedReplica = replica,
            answers: Any = answers,
        ) -> None:
            if not failed:
                failed.append(replica)
                raise ConnectionAbortedError
            await answers(request, reader, writer)

        replica.handler = once
    client = await connect(made.app)
    assert (await client.ask(post(PATH, body())))[0] == 200
    await until(lambda: made.count("released") == 1)
    told = [one for one in made.sent(made.decode) if one.get("max_tokens") != 1]
    assert [one["kv_transfer_params"]["serial"] for one in told] == [0, 1]
    # The first ones are thrown away, and nobody else can hit what they leave in the cache.
    [thrown_away] = [one for one in made.sent(made.decode) if one.get("max_tokens") == 1]
    assert thrown_away["kv_transfer_params"]["serial"] == 0
    assert thrown_away["cache_salt"]
    assert made.count("stranded") == 0
    await end(made)


@pytest.mark.parametrize("stream", [False, True])
async def test_blocks_that_cannot_be_fetched_are_computed(
    replicas: MakeReplica, router: MakeRouter, connect: Connect, stream: bool
) -> None:
    """An engine whose prefill engine has died answers 500, or an error as a stream's first event."""
    made = await world(replicas, router, connect, 1, 1)
    answers = made.decode[0].handler
    assert answers is not None

    async def handler(
        request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if "kv_transfer_params" not in request.json():
            await answers(request, reader, writer)
        elif stream:
            error = {"message": "Internal server error", "code": 500}
            writer.write(SSE_HEAD + chunk(event(error=error)) + END)
        else:
            writer.write(sized(b'{"error":{"message":"no","code":500}}', "500 Oops"))

    made.decode[0].handler = handler
    client = await connect(made.app)
    status, _, answer = await client.ask(post(PATH, body(stream=stream)))
    assert status == 200
    assert b"error" not in answer
    assert made.count("not_loaded") == 1
    await end(made)


async def test_client_leaves_while_prefill_computes(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    made = await world(replicas, router, connect, 1, 1)
    made.prefill[0].hang()
    client = await connect(made.app)
    client.send(post(PATH, body()))
    await made.prefill[0].asked()
    client.vanish()
    await made.prefill[0].left()
    await until(lambda: made.count("client_gone") == 1)
    assert not made.sent(made.decode)
    await end(made)


def answers_on_demand(replica: ScriptedReplica, answer: bytes) -> None:
    """Like vLLM: who hangs up before the answer is sent gets none. Streams of `busy` are held."""

    async def handler(
        request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if "busy" in request.json():
            writer.write(SSE_HEAD + TOKEN)
        leaving = asyncio.create_task(reader.read(1))
        waiting = asyncio.create_task(replica.gate.acquire())
        await asyncio.wait((leaving, waiting), return_when=asyncio.FIRST_COMPLETED)
        left = leaving.done()
        for task in (leaving, waiting):
            task.cancel()
        await asyncio.gather(leaving, waiting, return_exceptions=True)
        if left:
            replica.lost.set()
            raise ConnectionAbortedError
        writer.write(answer)

    replica.handler = handler


async def test_the_answer_of_a_prefill_that_is_near_is_waited_for(
    replicas: MakeReplica, router: MakeRouter, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hung up on in the moment it is done, an engine would keep the blocks for nobody."""
    monkeypatch.setattr("router.http.side_request._NEAR_SECONDS", 60.0)
    made = await world(replicas, router, connect, 1, 1)
    answers_on_demand(made.prefill[0], sized(prefilled()))
    client = await connect(made.app)
    client.send(post(PATH, body()))
    await made.prefill[0].asked()
    client.vanish()
    await until(lambda: len(exchanges(made.app)) == 1)
    made.prefill[0].gate.release()
    await until(lambda: made.count("released") == 1)
    assert made.count("client_gone") == 0
    [thrown_away] = made.sent(made.decode)
    assert thrown_away["kv_transfer_params"] == PARAMS
    await end(made)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_decode_replica_that_was_just_told_of_blocks_is_not_hung_up_on(
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    """Before it has read the request it would never hear of the blocks."""
    monkeypatch.setattr("router.http.first_leg._TAKEN_SECONDS", 60.0)
    made = await world(replicas, router, connect, 1, 1)
    decode, gateway = made.decode[0], made.app.gateway
    answer = SSE_HEAD + TOKEN + chunk(b"data: [DONE]\n\n") + END if stream else sized(b"{}")
    answers_on_demand(decode, answer)
    client = await connect(made.app)
    client.send(post(PATH, body(stream=stream)))
    await until(lambda: made.count("handed_over") == 1 and len(made.sent(made.decode)) == 1)
    client.vanish()
    await until(lambda: len(exchanges(made.app)) == 1)
    assert gateway.tasks
    assert not decode.lost.is_set()
    decode.gate.release()  # for the busy stream, which began before
    decode.gate.release()
    await until(lambda: not gateway.tasks)
    assert not decode.lost.is_set()
    # Its connection serves the next one.
    before = decode.connections
    decode.reply(sized(b"{}"))
    again = await connect(made.app)
    assert (await again.ask(post(PATH, body())))[0] == 200
    assert decode.connections == before
    await end(made)


@pytest.mark.parametrize("seconds", [0.0, 0.2])
async def test_a_decode_replica_that_had_time_to_begin_is_hung_up_on(
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
) -> None:
    monkeypatch.setattr("router.http.first_leg._TAKEN_SECONDS", seconds)
    made = await world(replicas, router, connect, 1, 1)
    answers_on_demand(made.decode[0], sized(b"{}"))
    client = await connect(made.app)
    client.send(post(PATH, body()))
    await until(lambda: len(made.sent(made.decode)) == 1)
    client.vanish()
    await made.decode[0].left()
    await until(lambda: not made.app.gateway.tasks)
    assert made.count("released") == made.count("stranded") == 0
    await end(made)


async def test_client_leaves_between_the_legs(
    replicas: MakeReplica, router: MakeRouter, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks are fetched by a request for one token, so that nothing holds them."""
    made = await world(replicas, router, connect, 1, 1)
    gateway = made.app.gateway
    reached, go_on = asyncio.Event(), asyncio.Event()
    original = gateway.connect

    async def slow(slot: int) -> Any:
        if made.prefill[0].received and not go_on.is_set():
            reached.set()
            await go_on.wait()
        return await original(slot)

    monkeypatch.setattr(gateway, "connect", slow)
    client = await connect(made.app)
    client.send(post(PATH, body(stream=True)))
    async with asyncio.timeout(10):
        await reached.wait()
    client.vanish()
    await until(lambda: len(exchanges(made.app)) == 1)
    go_on.set()
    await until(lambda: made.count("released") == 1)
    [thrown_away] = made.sent(made.decode)
    assert thrown_away["kv_transfer_params"] == PARAMS
    assert (thrown_away["max_tokens"], thrown_away["stream"]) == (1, False)
    await end(made)


async def test_an_idle_decode_replica_prefills_by_itself(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    decode, prefill = await replicas(), await replicas()
    app = await router(decode, prefill=(prefill.url,))
    await until(lambda: app.fleet.usable.bit_count() == 2)
    client = await connect(app)
    assert (await client.ask(post(PATH, body())))[0] == 200
    assert not prefill.received
    apart = app.gateway.disaggregation
    assert apart is not None
    assert apart.counts["cheaper_local"] == 1


async def test_a_prefill_replica_answers_no_client(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    decode, prefill = await replicas(), await replicas()
    app = await router(decode, prefill=(prefill.url,))
    await until(lambda: app.fleet.usable.bit_count() == 2)
    client = await connect(app)
    for _ in range(4):
        await client.ask(post("/v1/embeddings", b'{"model":"m","input":"a"}'))
    assert len(decode.received) == 4
    assert not prefill.received
