"""The command `warmroute picker`: what it refuses, TLS, several of them, and its end."""

from __future__ import annotations

import asyncio
import signal
import ssl
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest
import trustme
from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from picker_world import CHAT, Maker, MakeWorld, chat, served, until
from redis_server import RedisServer
from router_process import Serve

from loadgen.replicas import SimulatedFleet
from router.cli.main import main

REPLICA = "--replica=http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([REPLICA, "--tenants=redis", "--state=redis://x"], "a picker keeps no tenants"),
        ([REPLICA, "--jwt-keys=https://x/keys"], "a picker keeps no tenants"),
        ([REPLICA, "--tenant-header=x-t", "--tenant-proxies=10.0.0.1"], "keeps no tenants"),
        ([REPLICA, "--isolate=tenant"], "cannot keep tenants' caches apart"),
        (["--replica=http://vllm-0:8000"], "told ip:port, not a name"),
        (["--replica=http://127.0.0.1:8000/a"], "no path before a request's own"),
    ],
)
def test_what_a_picker_cannot_do_is_refused(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["picker", *flags]) == 1
    assert said in capsys.readouterr().err


async def check(target: str, credentials: grpc.ChannelCredentials | None = None) -> int:
    """What the health service says."""
    opened = (
        grpc.aio.secure_channel(target, credentials)
        if credentials
        else grpc.aio.insecure_channel(target)
    )
    async with opened as channel:
        ask = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=StringValue.SerializeToString,
            response_deserializer=Int32Value.FromString,
        )
        answer = await ask(StringValue(), timeout=20, wait_for_ready=True)
        return int(answer.value)


async def test_with_tls(maker: Maker, tmp_path: Path) -> None:
    authority = trustme.CA()
    pair = authority.issue_cert("localhost")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    for part in pair.cert_chain_pems:
        part.write_to_path(cert, append=True)
    pair.private_key_pem.write_to_path(key)
    async with SimulatedFleet(1) as fleet:
        app = await maker.picker(*fleet.urls, tls_cert=str(cert), tls_key=str(key))
        trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        assert await check(f"localhost:{app.port}", trusted) == 1
        # A client that does not offer h2 is none.
        context = ssl.create_default_context()
        authority.configure_trust(context)
        _, writer = await asyncio.open_connection("localhost", app.port, ssl=context)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() is None
        writer.close()


async def test_not_serving_without_a_replica(maker: Maker) -> None:
    async with SimulatedFleet(1) as fleet:
        app = await maker.picker(*fleet.urls)
        assert await check(f"127.0.0.1:{app.port}") == 1
        await fleet.replicas[0].die()
        await until(lambda: not app.fleet.usable)
        assert await check(f"127.0.0.1:{app.port}") == 2


async def test_two_pickers_know_what_each_has_sent(
    world: MakeWorld, maker: Maker, tmp_path: Path
) -> None:
    redis = RedisServer(tmp_path / "redis").start()
    try:
        made = await world(3, state=redis.url)
        other = await maker.picker(*made.fleet.urls, state=redis.url)
        front = await maker.envoy(other.port, made.fleet)
        text = "what one of them has sent " * 200
        assert (await made.ask(text)).status_code == 200
        one = served(made.fleet).index(1)
        await until(lambda: other.index.blocks == made.app.index.blocks > 0)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{front.port}") as client:
            assert (await client.post(CHAT, json=chat(text + "more"))).status_code == 200
        assert served(made.fleet)[one] == 2
    finally:
        redis.kill()


async def test_the_life_of_a_process(serve: Serve) -> None:
    async with SimulatedFleet(1) as fleet:
        process = await serve(*fleet.urls, command="picker", settle_time="0s")
        await process.ready()
        assert "listens on grpc://" in process.log
        assert await check(f"127.0.0.1:{process.port}") == 1
        async with httpx.AsyncClient(base_url=process.admin) as admin:
            assert (await admin.get("/replicas")).json()
            assert "warmroute_build_info" in (await admin.get("/metrics")).text
        process.signal(signal.SIGTERM)
        assert await process.exit() == 0
