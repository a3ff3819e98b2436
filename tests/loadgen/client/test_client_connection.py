"""Calls over real sockets, to servers that behave and to some that do not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from loadgen.client.answer import Answer
from loadgen.client.connection import Call
from loadgen.client.target import Target, TargetError

PATH = "/v1/chat/completions"


async def ask(target: Target, body: bytes = b"{}") -> Call:
    ended: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
    call = Call(target.message(body, "s"), Answer(keep_text=False), ended.set_result)
    target.send(call)
    return await asyncio.wait_for(ended, 20)


async def ask_once(wire: Any, data: bytes, *, close: bool = False) -> Call:
    async def answer(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        if close:
            await writer.drain()
            writer.close()

    async with wire.raw_server(answer) as server:
        target = Target(server.url, PATH)
        call = await ask(target)
        await target.close()
        return call


async def test_a_good_answer(wire: Any) -> None:
    call = await ask_once(wire, wire.GOOD)
    assert (call.status, call.answer.reason, call.answer.cached_tokens) == (200, "", 48)
    assert call.answer.last >= call.answer.first >= call.sent > 0


async def test_connections_are_kept(wire: Any) -> None:
    async def answer(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.GOOD)

    async with wire.raw_server(answer) as server:
        target = Target(server.url, PATH)
        for _ in range(5):
            assert (await ask(target)).answer.reason == ""
        assert (server.connections, len(server.seen)) == (1, 5)
        await target.close()


async def test_what_is_sent(wire: Any) -> None:
    async def answer(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.GOOD)

    async with wire.raw_server(answer) as server:
        target = Target(f"{server.url}/tenant/v1/", PATH, {"authorization": "Bearer x"})
        await ask(target, b'{"a": 1}')
        await target.close()
    (seen,) = server.seen
    assert seen.line == "POST /tenant/v1/chat/completions HTTP/1.1"
    assert seen.headers["authorization"] == "bearer x"
    assert seen.headers["x-session-id"] == "s"
    assert seen.headers["x-warmroute-explain"] == "1"
    assert seen.headers["host"] == server.url.removeprefix("http://")
    assert seen.body == {"a": 1}


async def test_the_replica_is_read_from_the_answer(wire: Any) -> None:
    named = wire.HEAD.replace(b"\r\n\r\n", b"\r\nX-Warmroute-Replica: r-7\r\n\r\n")
    data = wire.stream(wire.token("a", "stop"), wire.DONE, head=named)
    assert (await ask_once(wire, data)).replica == "r-7"


async def test_a_server_that_closes_kept_connections_costs_nothing(wire: Any) -> None:
    """Between two requests a server may close; the second is sent again on a new connection."""

    async def answer(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.GOOD)
        await writer.drain()
        writer.close()

    async with wire.raw_server(answer) as server:
        target = Target(server.url, PATH)
        for _ in range(4):
            assert (await ask(target)).answer.reason == ""
        assert server.connections == 4
        await target.close()


async def test_a_stream_that_ends_with_the_connection(wire: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    data = head + wire.token("a", "stop") + wire.DONE
    assert (await ask_once(wire, data, close=True)).answer.reason == ""
    cut = head + wire.token("a")
    assert (await ask_once(wire, cut, close=True)).answer.reason == "cut off"


async def test_early_hints_are_not_the_answer(wire: Any) -> None:
    data = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + wire.GOOD
    call = await ask_once(wire, data)
    assert (call.status, call.answer.reason) == (200, "")


async def test_servers_that_fail(wire: Any) -> None:
    refused = b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy"
    assert (await ask_once(wire, refused)).answer.reason == "status 503"
    partial = wire.HEAD + wire.chunk(wire.token("a"))
    assert (await ask_once(wire, partial, close=True)).answer.reason == "connection lost"
    assert (await ask_once(wire, b"", close=True)).answer.reason == "closed without answer"
    assert (await ask_once(wire, b"SSH-2.0-x\r\n")).answer.reason == "not HTTP"
    half = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
    assert (await ask_once(wire, half, close=True)).answer.reason == "connection lost"
    unfinished = wire.stream(wire.token("a"))
    assert (await ask_once(wire, unfinished)).answer.reason == "cut off"
    document = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"
    assert (await ask_once(wire, document)).answer.reason == "no choices"


async def test_the_first_error_body_is_kept(wire: Any) -> None:
    async def answer(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad\r\ncontent-length: 6\r\n\r\nno %d!!" % len(server.seen))

    async with wire.raw_server(answer) as server:
        target = Target(server.url, PATH)
        await ask(target)
        await ask(target)
        assert target.complaints == {400: b"no 1!!"}
        await target.close()


async def test_nobody_there(wire: Any) -> None:
    async with wire.raw_server(lambda *_: asyncio.sleep(0)) as server:
        pass
    target = Target(server.url, PATH)
    assert (await ask(target)).answer.reason == "connection refused"
    await target.close()


async def test_bad_urls_are_refused() -> None:
    for url in (
        "127.0.0.1:80",
        "ftp://x",
        "http://",
        "http://x:port",
        "http://[::1",
        "http://a/b c",
    ):
        with pytest.raises(TargetError):
            Target(url, PATH)


@pytest.mark.parametrize("header", [("a", "b\r\nc: d"), ("a\nb", "c"), ("a", "\0")])
async def test_a_header_cannot_end_its_line(header: tuple[str, str]) -> None:
    with pytest.raises(TargetError, match="line break"):
        Target("http://127.0.0.1:1", PATH, dict([header]))
