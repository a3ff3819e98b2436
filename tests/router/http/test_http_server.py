"""The client's side at the edges of the protocol, with raw sockets."""

from __future__ import annotations

import asyncio
import json
import shutil
from http import HTTPStatus

import pytest
from http_world import (
    CHAT,
    SSE_HEAD,
    Connect,
    MakeReplica,
    MakeRouter,
    get,
    post,
    sized,
)

PATH = "/v1/chat/completions"
H = b"Host: x\r\n"
P = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
G = b"GET /x HTTP/1.1\r\nHost: x\r\n"

WORDS = {400: "BadRequestError", 501: "NotImplementedError"}
REFUSED = {
    "both lengths": (P + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "both, other order": (
        P + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two lengths": (P + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc", 400),
    "length twice": (P + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab", 400),
    "length list": (P + b"Content-Length: 2, 2\r\n\r\nab", 400),
    "length +": (P + b"Content-Length: +2\r\n\r\nab", 400),
    "length -": (P + b"Content-Length: -2\r\n\r\nab", 400),
    "length hex": (P + b"Content-Length: 0x2\r\n\r\nab", 400),
    "length empty": (P + b"Content-Length:\r\n\r\n", 400),
    "length huge": (P + b"Content-Length: 99999999999999999999999\r\n\r\nab", 400),
    "length over the limit": (P + b"Content-Length: 99999999999\r\n\r\nab", 413),
    "chunk size bad": (P + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
    "chunk size huge": (P + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400),
    "chunk too long": (P + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n", 400),
    "chunks with LF": (P + b"Transfer-Encoding: chunked\r\n\r\n2\nab\n0\n\n", 400),
    "coding unknown": (P + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "coding not chunked": (P + b"Transfer-Encoding: identity\r\n\r\n", 501),
    "coding obscured": (P + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "coding with a space": (P + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    "coding twice": (P + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n", 400),
    "coding in HTTP/1.0": (
        b"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "LF in the request line": (b"GET /x HTTP/1.1\nHost: x\n\n", 400),
    "LF after a header": (b"GET /x HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    "LF at the end": (G + b"\nGET /y HTTP/1.1\r\n\r\n", 400),
    "CR alone": (b"GET /x HTTP/1.1\r\nHost: x\rA: b\r\n\r\n", 400),
    "folded header": (G + b"A: b\r\n c\r\n\r\n", 400),
    "NUL": (G + b"A: b\0c\r\n\r\n", 400),
    "no host": (b"GET /x HTTP/1.1\r\n\r\n", 400),
    "two hosts": (G + H + b"\r\n", 400),
    "HTTP/0.9": (b"GET /x\r\n\r\n", 505),
    "HTTP/1.2": (b"GET /x HTTP/1.2\r\nHost: x\r\n\r\n", 400),
    "HTTP/2.0": (b"GET /x HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "TLS": (bytes.fromhex("16030100c8010000c40303") + b"\1" * 200, 400),
    "method unknown": (b"FOO /x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "method in small letters": (b"get /x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
    "CONNECT upgraded": (
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        405,
    ),
    "target no path": (b"GET x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "target no host": (b"POST http:// HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab", 400),
    "target *": (b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "target with a space": (b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "expectation unknown": (P + b"Expect: a-pony\r\nContent-Length: 2\r\n\r\n", 417),
    "WebSocket by POST": (
        P + b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
        400,
    ),
    "WebSocket with a body": (
        G + b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nab",
        400,
    ),
    "garbage": (b"\x80\x81\r\n\r\n", 400),
}


async def test_what_is_no_request_is_refused(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    for name, (data, status) in REFUSED.items():
        client = await connect(app)
        # What comes behind must never be taken for a request.
        client.send(data, get("/smuggled"))
        found, headers, body = await client.answer()
        assert (name, found, headers["connection"]) == (name, status, "close")
        error = json.loads(body)["error"]
        assert error["message"], name
        assert error["type"] == WORDS.get(status, HTTPStatus(status).phrase), name
        assert headers["x-request-id"], name
        assert await client.rest() == b"", name
    assert replica.received == []
    assert replica.connections <= 3


@pytest.mark.parametrize("step", [1, 7])
async def test_a_request_in_small_pieces(
    step: int, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    data = post(PATH, CHAT, "X-Long: " + "v" * 50)
    for at in range(0, len(data), step):
        client.send(data[at : at + step])
        await asyncio.sleep(0)
    status, _, _ = await client.answer()
    assert status == 200
    assert replica.received[0].body == CHAT
    assert replica.received[0].header("x-long") == "v" * 50


async def test_old_clients(replicas: MakeReplica, router: MakeRouter, connect: Connect) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    status, headers, body = await client.ask(b"GET /x HTTP/1.0\r\n\r\n")
    assert (status, headers["connection"], body) == (200, "close", b'{"ok":true}')
    assert await client.rest() == b""
    client = await connect(app)
    for _ in range(2):
        _, headers, _ = await client.ask(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert headers["connection"] == "keep-alive"
    replica.reply(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        *(b"5;ext=1\r\nhe", b"llo\r\n1\r", b"\n!\r\n0\r\nTrailer: x\r\n\r\n"),
    )
    status, headers, body = await client.ask(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert (status, body) == (200, b"hello!")
    assert "transfer-encoding" not in headers
    assert headers["connection"] == "close"


async def test_keep_alive_and_close(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    for _ in range(3):
        _, headers, _ = await client.ask(get("/x"))
        assert "connection" not in headers
    _, headers, _ = await client.ask(get("/x", "Connection: close"))
    assert headers["connection"] == "close"
    assert await client.rest() == b""
    assert len(replica.received) == 4


async def test_chunked_request_body(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    head = P + b"Transfer-Encoding: chunked\r\nA: b\r\nTrailer: T\r\n\r\n"
    half = len(CHAT) // 2
    body = b"%x;e=1\r\n%b\r\n%X\r\n%b\r\n" % (
        *(half, CHAT[:half]),
        *(len(CHAT) - half, CHAT[half:]),
    )
    trailers = b"0\r\nT: x\r\nAuthorization: evil\r\nX-Request-Id: evil\r\nHost: evil\r\n\r\n"
    # Twice, so that a trailer cannot slip into the next head.
    for _ in range(2):
        client.send(head)
        for at in range(0, len(body), 9):
            client.send(body[at : at + 9])
            await asyncio.sleep(0)
        status, _, _ = await client.ask(trailers)
        assert status == 200
    status, _, _ = await client.ask(get("/after"))
    assert status == 200
    for request in replica.received[:2]:
        assert request.body == CHAT
        assert [name for name, _ in request.headers] == [
            *("host", "A", "via", "content-length", "x-request-id")
        ]
    assert [name for name, _ in replica.received[2].headers] == ["host", "via", "x-request-id"]


async def test_continue(replicas: MakeReplica, router: MakeRouter, connect: Connect) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    request = post(PATH, CHAT, "Expect: 100-continue")
    head, body = request[: -len(CHAT)], request[-len(CHAT) :]
    client.send(head)
    assert await client.head() == (100, {})
    assert replica.received == []
    status, _, _ = await client.ask(body)
    assert status == 200
    assert replica.received[0].header("expect") is None
    # A client that speaks HTTP/1.0 knows no interim answers.
    old = head.replace(b"HTTP/1.1", b"HTTP/1.0")
    status, _, _ = await client.ask(old + body)
    assert status == 200


async def test_continue_waits_for_its_turn(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply_in_steps(sized(b"first")[:-1], b"t")
    app = await router(replica)
    client = await connect(app)
    request = post(PATH, CHAT, "Expect: 100-continue")
    client.send(get("/slow"))
    await replica.asked()
    client.send(request[: -len(CHAT)])
    await client.head()
    assert await client.reader.readexactly(4) == b"firs"
    replica.handler = None
    replica.step()
    assert await client.reader.readexactly(1) == b"t"
    assert await client.head() == (100, {})
    status, _, _ = await client.ask(request[-len(CHAT) :])
    assert status == 200


async def test_continue_is_not_said_to_what_is_refused(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(await replicas(), max_body=2000)
    client = await connect(app)
    status, _, _ = await client.ask(post(PATH, b"x" * 3000, "Expect: 100-continue"))
    assert status == 413


async def test_head_and_options(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    head = b"HEAD /x HTTP/1.1\r\nHost: x\r\n\r\n"
    answers = {
        "sized": (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n", "content-length", "99"),
        "chunked": (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "transfer-encoding",
            "chunked",
        ),
        "of a stream": (SSE_HEAD, "content-type", "text/event-stream; charset=utf-8"),
        "with a body": (sized(b"no body belongs here"), "content-length", "20"),
    }
    for answer, name, value in answers.values():
        replica.reply(answer)
        client.send(head)
        status, headers, _ = await client.answer("HEAD")
        assert (status, headers[name]) == (200, value)
    client.send(head.replace(b"/x", b"/v1/models"))
    status, headers, _ = await client.answer("HEAD")
    assert status == 200
    assert int(headers["content-length"]) > 10
    replica.reply(b"HTTP/1.1 204 No Content\r\nallow: POST\r\n\r\n")
    status, headers, _ = await client.ask(b"OPTIONS /x HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, headers["allow"]) == (204, "POST")
    for target in (b"*", b"/v1/models"):
        status, headers, _ = await client.ask(b"OPTIONS " + target + b" HTTP/1.1\r\n" + H + b"\r\n")
        assert (status, headers["allow"]) == (204, "GET, HEAD, OPTIONS")
        assert "content-length" not in headers
    assert [r.method for r in replica.received] == ["HEAD"] * 4 + ["OPTIONS"]


async def test_absolute_targets(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    for target in ("http://other:99/a/b?c=d", "http://other", "http://other?q=1"):
        status, _, _ = await client.ask(get(target))
        assert status == 200
    assert [r.target for r in replica.received] == ["/a/b?c=d", "/", "/?q=1"]
    assert replica.received[0].header("host") == f"127.0.0.1:{replica.port}"
    status, _, body = await client.ask(get("http://other/v1/models"))
    assert (status, json.loads(body)["object"]) == (200, "list")
    status, _, _ = await client.ask(get("http://other/%73leep"))
    assert status == 403


async def test_error_forms(replicas: MakeReplica, router: MakeRouter, connect: Connect) -> None:
    app = await router(await replicas())
    bad = b"Content-Length: x\r\n\r\n"
    client = await connect(app)
    _, _, body = await client.ask(P + bad)
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    client = await connect(app)
    status, _, body = await client.ask(b"POST /v1/messages HTTP/1.1\r\n" + H + bad)
    assert status == 400
    assert json.loads(body)["type"] == "error"
    assert json.loads(body)["error"]["type"] == "BadRequestError"


async def test_curl(replicas: MakeReplica, router: MakeRouter) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl")
    replica = await replicas()
    app = await router(replica)
    url = f"http://127.0.0.1:{app.port}"

    async def run(*arguments: str) -> bytes:
        process = await asyncio.create_subprocess_exec(
            curl, "-sS", "--max-time", "20", *arguments, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out

    assert await run("-d", CHAT.decode(), f"{url}{PATH}") == b'{"ok":true}'
    assert await run("-0", f"{url}/x") == b'{"ok":true}'
    assert b"content-length" in await run("-I", f"{url}/v1/models")
    # curl asks for h2c with a body and for 100-continue with a large one.
    assert await run("--http2", "-d", CHAT.decode(), f"{url}{PATH}") == b'{"ok":true}'
    assert await run("-H", "Expect: 100-continue", "-d", "x" * 3000, f"{url}/y") == b'{"ok":true}'
    assert await run("-H", "Transfer-Encoding: chunked", "-d", "abc", f"{url}/y") == b'{"ok":true}'
    assert [r.body for r in replica.received] == [CHAT, b"", CHAT, b"x" * 3000, b"abc"]
    replica.reply(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    assert await run(f"{url}/x") == b"abc"
