"""TLS on both sides, and IPv6."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from pathlib import Path

import pytest
import trustme
from http_world import (
    CHAT,
    END,
    SSE_HEAD,
    STREAM,
    Connect,
    MakeReplica,
    MakeRouter,
    Raw,
    chunk,
    event,
    exchanges,
    get,
    post,
    until,
)

PATH = "/v1/chat/completions"


class Papers:
    """A certificate authority and what it signed, as files and contexts."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1", "localhost", "::1")
        self.cert, self.key, self.ca = (str(folder / name) for name in ("cert", "key", "ca"))
        issued.cert_chain_pems[0].write_to_path(self.cert)
        issued.private_key_pem.write_to_path(self.key)
        authority.cert_pem.write_to_path(self.ca)
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        issued.configure_cert(self.server)
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


async def tls_client(port: int, papers: Papers) -> Raw:
    return Raw(*await asyncio.open_connection("127.0.0.1", port, ssl=papers.client))


async def test_both_sides(papers: Papers, replicas: MakeReplica, router: MakeRouter) -> None:
    replica = await replicas(tls=papers.server)
    app = await router(replica, replica_ca=papers.ca, tls_cert=papers.cert, tls_key=papers.key)
    client = await tls_client(app.port, papers)
    large = json.dumps({"model": "m", "messages": [], "x": "y" * 2_000_000}).encode()
    for body in (CHAT, large, CHAT):
        assert (await client.ask(post(PATH, body)))[2] == b'{"ok":true}'
        assert replica.received[-1].body == body
    tokens = chunk(event(choices=[{"delta": {"content": "x" * 1000}}])) * 1000
    replica.reply(SSE_HEAD, tokens + END)
    assert (await client.ask(post(PATH, STREAM)))[2] == tokens + END
    # Refusals are seen to their end, too.
    client.send(b"BAD\r\n\r\n")
    status, headers, _ = await client.answer()
    assert (status, headers["connection"]) == (400, "close")
    assert await client.rest() == b""
    client.close()
    # One that leaves in the middle.
    replica.hang(SSE_HEAD, tokens)
    client = await tls_client(app.port, papers)
    client.send(post(PATH, STREAM))
    await client.head()
    client.close()
    await replica.left()


async def test_a_replica_that_is_not_trusted(
    papers: Papers, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas(tls=papers.server)
    app = await router(replica)
    client = await connect(app)
    # Its health could not be asked either.
    assert (await client.ask(post(PATH, CHAT)))[0] == 503
    app.fleet.usable = 1
    app.fleet._catalog.tell_any(0)
    status, _, body = await client.ask(post(PATH, CHAT))
    assert status == 502
    assert "certificate" in json.loads(body)["error"]["message"].lower()
    app = await router(replica, replica_verify=False)
    client = await connect(app)
    assert (await client.ask(post(PATH, CHAT)))[0] == 200


async def test_plain_bytes_on_the_tls_port(
    papers: Papers, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(await replicas(), tls_cert=papers.cert, tls_key=papers.key)
    client = await connect(app)
    client.send(get("/x"))
    assert b"HTTP" not in await client.rest()
    client = await connect(app)
    client.vanish()


async def test_tls_flow_control(papers: Papers, replicas: MakeReplica, router: MakeRouter) -> None:
    replica = await replicas()
    body = bytes(range(256)) * 100_000
    replica.reply(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body), body)
    app = await router(replica, tls_cert=papers.cert, tls_key=papers.key)
    client = await tls_client(app.port, papers)
    client.writer.transport.pause_reading()
    client.send(get("/x"))
    await until(lambda: any(exchange.paused for exchange in exchanges(app)))
    client.writer.transport.resume_reading()
    status, _, got = await client.answer()
    assert (status, got == body) == (200, True)
    client.close()


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
async def test_ipv6(replicas: MakeReplica, router: MakeRouter) -> None:
    replica = await replicas(host="::1")
    for host, addresses in (("::1", ["::1"]), ("::", ["::1", "127.0.0.1"])):
        app = await router(replica, host=host)
        for address in addresses:
            client = Raw(*await asyncio.open_connection(address, app.port))
            assert (await client.ask(post(PATH, CHAT)))[0] == 200
            client.close()
    assert replica.received[0].header("host") == f"[::1]:{replica.port}"
