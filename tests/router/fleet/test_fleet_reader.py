from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import trustme
from fleet_engines import StartEngine, StartFleet

from router.config import Settings
from router.fleet.reader import Answer, Failure, Reader, ReadError, tls_context

TLS = tls_context(Settings())


async def failure(reader: Reader, limit: int = 1000, within: float = 20.0) -> ReadError:
    with pytest.raises(ReadError) as caught:
        await reader.get("/metrics", limit, within)
    await reader.close()
    return caught.value


async def test_reads_over_one_connection_with_the_key(engine: StartEngine) -> None:
    server = await engine(metrics=b"m" * 100)
    reader = Reader(server.url, "sesame", TLS)
    assert await reader.get("/metrics", 100, 2.0) == Answer(200, b"m" * 100)
    assert (await reader.get("/health", 100, 2.0)).status == 200
    assert (await reader.get("/nothing", 100, 2.0)).status == 404
    assert server.connections == 1
    head = server.heads[0].lower()
    assert b"authorization: bearer sesame\r\n" in head
    assert b"host: 127.0.0.1:%d\r\n" % server.port in head
    assert b"accept-encoding: identity\r\n" in head
    await reader.close()


async def test_proxies_of_the_environment_are_not_used(
    engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server = await engine()
    reader = Reader(server.url, "", TLS)
    assert (await reader.get("/health", 100, 20.0)).status == 200
    await reader.close()


async def test_cuts_an_answer_that_is_too_long(engine: StartEngine) -> None:
    server = await engine(metrics=b"m" * 50_000_000)
    error = await failure(Reader(server.url, "", TLS))
    assert error.failure is Failure.BAD
    assert "more than 1000 bytes" in str(error)


async def test_gives_up_on_a_slow_drip(engine: StartEngine) -> None:
    server = await engine(drip=frozenset({"/metrics"}))
    error = await failure(Reader(server.url, "", TLS), limit=100_000, within=0.3)
    assert error.failure is Failure.SLOW
    assert "0.3 s" in str(error)


async def test_gives_up_on_a_frozen_server(engine: StartEngine) -> None:
    server = await engine(frozen=frozenset({"/metrics"}))
    assert (await failure(Reader(server.url, "", TLS), within=0.3)).failure is Failure.SLOW


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01 nonsense\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000,
    ],
)
async def test_garbage_is_an_error_that_says_so(engine: StartEngine, garbage: bytes) -> None:
    server = await engine(garbage=garbage)
    error = await failure(Reader(server.url, "", TLS))
    assert error.failure is Failure.BAD
    assert str(error).startswith("/metrics: ")


async def serve(*answers: bytes) -> tuple[asyncio.Server, list[int], str]:
    """A server that gives these answers, the next one to each request whatever its connection; an
    empty one closes without a word. Also the requests by connection, and its URL."""
    asked: list[int] = []
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(asked)
        asked.append(0)
        try:
            while left:
                await reader.readuntil(b"\r\n\r\n")
                asked[number] += 1
                told = left.pop(0)
                if not told:
                    break
                writer.write(told)
                if b"length" not in told and b"chunked" not in told:
                    break
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return server, asked, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    "told",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nx: y\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
    ],
    ids=["chunked", "interim", "until closed", "1.0", "closing"],
)
async def test_every_way_an_answer_may_end(told: bytes) -> None:
    server, asked, url = await serve(told, OK)
    reader = Reader(url, "", TLS)
    assert await reader.get("/health", 100, 20.0) == Answer(200, b"ok")
    assert await reader.get("/health", 100, 20.0) == Answer(200, b"ok")
    stays = b"chunked" in told or b"103" in told
    assert asked == ([2] if stays else [1, 1])
    await reader.close()
    server.close()


async def test_a_connection_closed_for_being_idle_is_replaced() -> None:
    server, asked, url = await serve(OK, b"", OK)
    reader = Reader(url, "", TLS)
    for _ in range(2):
        assert await reader.get("/health", 100, 20.0) == Answer(200, b"ok")
    assert asked == [2, 1]
    await reader.close()
    server.close()


async def test_a_server_that_closes_new_connections_is_not_asked_for_ever() -> None:
    server, asked, url = await serve(b"", OK)
    reader = Reader(url, "", TLS)
    with pytest.raises(ReadError, match="/health: ") as caught:
        await reader.get("/health", 100, 20.0)
    assert caught.value.failure is Failure.BAD
    assert asked == [1]
    server.close()


async def test_a_second_answer_nobody_asked_for_is_not_taken_for_the_next_one() -> None:
    bad = b"HTTP/1.1 500 Bad\r\ncontent-length: 0\r\n\r\n"
    server, _, url = await serve(OK + bad, OK)
    reader = Reader(url, "", TLS)
    with pytest.raises(ReadError, match="more than one answer"):
        await reader.get("/health", 100, 20.0)
    assert await reader.get("/health", 100, 20.0) == Answer(200, b"ok")
    await reader.close()
    server.close()


async def test_reads_below_a_path_of_the_url(engine: StartEngine) -> None:
    server = await engine()
    reader = Reader(f"{server.url}/below", "", TLS)
    assert (await reader.get("/health", 100, 20.0)).status == 404
    assert server.asked["/below/health"] == 1
    await reader.close()


async def test_a_host_that_is_no_name_is_told() -> None:
    error = await failure(Reader(f"http://{'a' * 64}:1", "", TLS))
    assert error.failure is Failure.REFUSED


async def test_nobody_listens(engine: StartEngine) -> None:
    server = await engine()
    await server.stop()
    error = await failure(Reader(server.url, "", TLS))
    assert error.failure is Failure.REFUSED
    assert "refused" in str(error)


async def test_an_untrusted_certificate_is_told(tmp_path: Path) -> None:
    authority = trustme.CA()
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    pem = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(pem))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=serving) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        untrusting = Reader(url, "", tls_context(Settings()))
        with pytest.raises(ReadError, match=r"(?i)certificate") as caught:
            await untrusting.get("/health", 100, 5.0)
        assert caught.value.failure is Failure.REFUSED
        await untrusting.close()
        for settings in (Settings(replica_ca=str(pem)), Settings(replica_verify=False)):
            reader = Reader(url, "", tls_context(settings))
            assert (await reader.get("/health", 100, 5.0)).body == b"ok"
            await reader.close()


def test_a_ca_file_that_is_none_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "ca.pem"
    bad.write_text("nothing")
    for path in (bad, tmp_path / "absent.pem"):
        with pytest.raises(ValueError, match=r"CA file .*pem"):
            tls_context(Settings(replica_ca=str(path)))


@contextlib.contextmanager
def no_files_left() -> Iterator[None]:
    """This process cannot open anything more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_what_the_router_lacks_is_no_refusal(engine: StartEngine) -> None:
    server = await engine()
    reader = Reader(server.url, "", TLS)
    with no_files_left():
        error = await failure(reader)
    assert error.failure is Failure.LOCAL
    assert "/metrics could not be asked: Too many open files" in str(error)


async def test_a_router_out_of_files_changes_no_replica(
    engine: StartEngine,
    fleet: StartFleet,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def lacks_files(_reader: Reader) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    # Without metrics that tell its start, a refused connection would mean a restart.
    server = await engine(metrics=b"", metrics_status=404)
    running = await fleet(server, unhealthy_after=1, health_interval=0.02)
    [replica] = running.members()
    # The limit itself is not lowered here: who gets a file that a closed connection gives back, the
    # reader or the engine, would be chance.
    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr(Reader, "_connect", lacks_files)
        for task in list(server._tasks):
            task.cancel()
        async with asyncio.timeout(20):
            while "cannot be probed" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert running.usable == 1
    await server.asked_again("/health", 2)
    assert (replica.restarts, running.usable) == (0, 1)
    assert caplog.text.count("cannot be probed") == 1
