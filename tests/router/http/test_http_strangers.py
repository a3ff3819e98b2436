"""Who is not known: refused by the head alone, so that bodies of strangers take no memory."""

from __future__ import annotations

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator

import pytest
from http_world import SECONDS, Connect, MakeReplica, Raw, until
from tenant_world import ANSWER, BODY, KEYS, SECRET, MakeGateway, chat
from tenant_world import client as client_of

from router.app import App

CHAT = "/v1/chat/completions"
LARGE = 100_000_000


def begin(path: str, *lines: str, length: int = LARGE) -> bytes:
    """The head of a request with a large body."""
    told = "".join(f"{line}\r\n" for line in (*lines, f"Content-Length: {length}"))
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{told}\r\n".encode()


def body_bytes(app: App) -> int:
    return app.telemetry.live.body_bytes


@pytest.mark.parametrize(
    "lines", [(), ("Authorization: Bearer sk-wr-wrong",), ("Expect: 100-continue",)]
)
async def test_a_stranger_is_refused_before_its_body(
    gateway: MakeGateway, replicas: MakeReplica, connect: Connect, lines: tuple[str, ...]
) -> None:
    app = await gateway(await replicas(), max_body=2 * LARGE)
    client = await connect(app)
    client.send(begin(CHAT, *lines), b"x" * 1000)
    status, headers, body = await client.answer()
    assert (status, headers["connection"]) == (401, "close")
    assert headers["www-authenticate"] == "Bearer"
    assert json.loads(body)["error"]["code"] == "invalid_api_key"
    client.send(b"x" * 100_000)
    assert await client.rest() == b""
    assert body_bytes(app) == 0
    assert app.tenants is not None
    assert sum(app.tenants.auth_failures.values()) == 1


async def test_a_stranger_that_sends_in_chunks_is_refused_in_the_apis_form(
    gateway: MakeGateway, replicas: MakeReplica, connect: Connect
) -> None:
    app = await gateway(await replicas())
    client = await connect(app)
    client.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n")
    status, _, body = await client.answer()
    assert (status, json.loads(body)["error"]["type"]) == (401, "authentication_error")


@pytest.mark.parametrize(("path", "status"), [("/sleep", 403), ("/health", 405)])
async def test_bodies_that_need_no_key_are_not_kept(
    gateway: MakeGateway, replicas: MakeReplica, connect: Connect, path: str, status: int
) -> None:
    app = await gateway(await replicas(), body_memory=100_000)
    client = await connect(app)
    client.send(begin(path, length=1_000_000), b"x" * 999_999)
    # The router reads it, and answers when it is whole.
    other = await connect(app)
    async with asyncio.timeout(SECONDS):
        while client.writer.transport.get_write_buffer_size():  # type: ignore[attr-defined]  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert (await other.ask(begin("/health", length=0)))[0] == 405
    assert body_bytes(app) == 0
    client.send(b"x")
    assert (await client.answer())[0] == status


async def test_a_key_that_is_revoked_while_the_body_comes_is_refused(
    gateway: MakeGateway,
    replicas: MakeReplica,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.http.admission._GOOD_FOR_S", 0.0)
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica)
    client = await connect(app)
    body = json.dumps(BODY).encode()
    key = f"Authorization: Bearer {KEYS['acme']}"
    client.send(begin(CHAT, key, length=len(body)), body[:-1])
    await until(lambda: body_bytes(app) == len(body) - 1)
    assert app.tenants is not None
    registry = app.tenants.registry
    for sha256 in registry.file.keys:
        registry._file_keys.pop(bytes.fromhex(sha256))
    registry._by_key.clear()
    client.send(body[-1:])
    assert (await client.answer())[0] == 401
    assert not replica.received


async def test_a_body_is_not_read_on_while_a_tokens_key_is_fetched(
    provider: Provider,
    gateway: MakeGateway,
    replicas: MakeReplica,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.tenants.jwt_verifier._AT_MOST_EVERY_S", 0.0)
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, jwt_keys=provider.url, max_body=2 * LARGE)
    head = urlsafe_b64encode(b'{"alg":"RS256","kid":"new"}').decode()
    client = await connect(app)
    client.send(begin(CHAT, f"Authorization: Bearer {head}.e30.AA"), b"x" * 50_000_000)
    await provider.asked.wait()
    held = -1
    while held != body_bytes(app):
        held = body_bytes(app)
        await asyncio.sleep(0.05)
    assert held <= 1_000_000
    assert (await chat(app)).status_code == 200  # others do not wait
    provider.answers.set()
    assert (await client.answer())[0] == 401
    await until(lambda: not body_bytes(app))


class Provider:
    """Serves a key at once, and all that is asked for later when it is told to."""

    def __init__(self) -> None:
        self.answers, self.asked = asyncio.Event(), asyncio.Event()
        self.url = ""
        self._first = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, self._first = self._first, False
        raw = Raw(reader, writer)
        await reader.readuntil(b"\r\n\r\n")
        if not first:
            self.asked.set()
            await self.answers.wait()
        number = "AQAB" + "A" * 340
        keys = {"keys": [{"kty": "RSA", "kid": "old", "n": number, "e": "AQAB", "alg": "RS256"}]}
        body = json.dumps(keys).encode()
        raw.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body))
        raw.send(body)
        raw.close()


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"
    yield made
    made.answers.set()
    server.close()


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("Authorization: bearer {key}",), 200),
        (("AUTHORIZATION: BEARER   {key}  ",), 200),
        (("X-Api-Key: {key}",), 200),
        (("Authorization: Bearer wrong", "x-api-key: {key}"), 401),
        (("Authorization: Bearer {key}", "x-api-key: wrong"), 200),
        (("x-api-key: {key}", "x-api-key: {key}"), 400),
        (("Authorization: Bearer {key}", "Authorization: Bearer wrong"), 400),
        (("Authorization: Bearer",), 401),
        (("Authorization: Bearer ",), 401),
        (("Authorization: {key}",), 401),
        (("Authorization: Basic {key}",), 401),
        (("Authorization: Bearer {key}x",), 401),
        (("Authorization: Bearer {key} x",), 401),
        (("Authorization: Bearer \xe9\xff",), 401),
        (("Authorization: Bearer " + "k" * 20_000,), 401),
        (("Cookie: key={key}",), 401),
    ],
)
async def test_odd_credentials(
    gateway: MakeGateway,
    replicas: MakeReplica,
    connect: Connect,
    lines: tuple[str, ...],
    status: int,
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica)
    client = await connect(app)
    told = "".join(f"{line}\r\n" for line in lines).replace("{key}", KEYS["acme"])
    body = json.dumps(BODY).encode()
    head = f"POST {CHAT}?api_key={KEYS['acme']} HTTP/1.1\r\nHost: x\r\n{told}"
    client.send(head.encode("latin-1") + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert (await client.answer())[0] == status
    assert len(replica.received) == (status == 200)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","input":"x","cache_salt":"a","cache_salt":"b"}',
        b'{"model":"m","input":"x","cache\\u005fsalt":"a"}',
        b'{"model":"m","input":"x","c\\u0061che_salt":null,"cache_salt":"a"}',
        b'{"model":"m","input":{"cache_salt":"a"}}',
        b'{"model":"m","input":"x","cache_salt":{"cache_salt":"a"}}',
        b'\xef\xbb\xbf{"model":"m","input":"x","cache_salt":"a"}',
        b'{"model":"m","input":NaN,"cache_salt":"a"}',
        '{"model":"m","input":"x","cache_salt":"a"}'.encode("utf-16-be"),
        '{"model":"m","input":"x","cache_salt":"a"}'.encode("utf-16-le"),
        b"{\x00cache_salt\xd8}",
    ],
)
async def test_whatever_the_body_an_engine_sees_the_routers_salt_or_nothing(
    gateway: MakeGateway, replicas: MakeReplica, body: bytes
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, isolation="tenant", isolation_secret=SECRET)
    salts = set()
    for tenant in KEYS:
        async with client_of(app, tenant) as http:
            for path in ("/v1/embeddings", CHAT.replace("chat/completions", "responses")):
                await http.post(path, content=body)
    for received in replica.received:
        try:
            found = json.loads(received.body)  # as engines do
        except ValueError:
            continue
        assert len(found["cache_salt"]) == 43
        salts.add(found["cache_salt"])
    assert len(salts) in (0, 2)  # one for each tenant


async def test_what_comes_without_a_body_is_refused_where_no_salt_can_go(
    gateway: MakeGateway, replicas: MakeReplica, connect: Connect
) -> None:
    replica = await replicas()
    upgrade = (
        "GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        f"Authorization: Bearer {KEYS['acme']}\r\n\r\n"
    ).encode()
    isolated = await gateway(replica, isolation="tenant", isolation_secret=SECRET)
    assert (await (await connect(isolated)).ask(upgrade))[0] == 403
    listed = await gateway(replica, acme={"models": ["m"]})
    assert (await (await connect(listed)).ask(upgrade))[0] == 403
    assert not replica.received
