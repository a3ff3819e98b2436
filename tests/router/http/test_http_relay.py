"""Heads of answers, and where they end."""

from __future__ import annotations

from http_world import (
    Connect,
    MakeReplica,
    MakeRouter,
    get,
    sized,
)


async def test_statuses_without_a_body(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    for head in (
        *(b"204 No Content\r\n", b"304 Not Modified\r\ncontent-length: 7\r\n"),
        b"304 Not Modified\r\netag: x\r\n",
    ):
        # The line end behind it belongs to nothing.
        replica.reply(b"HTTP/1.1 " + head + b"\r\n\r\n")
        client.send(get("/x"))
        status, headers, _ = await client.answer()
        assert status == int(head[:3])
        assert "connection" not in headers
    replica.handler = None
    assert (await client.ask(get("/x")))[2] == b'{"ok":true}'


async def test_interim_answers_are_skipped(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    answer = sized(b"body\r\n\r\nbody")
    for pieces in (
        (interim + answer,),
        (interim, answer),
        (b"\r\n\r\n" + interim + b"\r\n\r\n" + answer,),
        tuple(bytes([byte]) for byte in b"\r\n" + interim + answer),
    ):
        replica.reply(*pieces)
        status, headers, body = await client.ask(get("/x"))
        assert (status, body) == (200, b"body\r\n\r\nbody")
        assert "link" not in headers


async def test_line_ends_behind_an_answer_are_not_passed_on(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    replica.reply(sized(b"ok") + b"\r\n\r\n")
    for _ in range(2):
        assert (await client.ask(get("/x")))[2] == b"ok"
    replica.reply(sized(b"")[:-2] + b"connection: close\r\n\r\n\r\n")
    assert (await client.ask(get("/x")))[2] == b""
    replica.reply_and_close(sized(b"last"))
    assert (await client.ask(get("/x", "Connection: close")))[2] == b"last"
    assert await client.rest() == b""
