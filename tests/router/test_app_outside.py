"""What the system does to a router: signals, standard files that are closed or not read, few files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from router_process import PROGRAM, ROOT, Process, Serve

from loadgen.replicas import SimulatedFleet

LONG = {"model": "sim", "prompt": "hello", "max_tokens": 400, "stream": True}
SHORT = {"model": "sim", "prompt": "hello", "max_tokens": 2}


def about(pid: int, what: str) -> str:
    """What the system tells of a process; nothing where it has gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(what + ":"):
                return line.partition(":")[2].strip()
    return ""


async def until_stopped(pid: int) -> None:
    """Wait until the system has stopped a process."""
    async with asyncio.timeout(20):
        while not about(pid, "State").startswith("T"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


async def test_signals_cut_nothing(fleet: SimulatedFleet, serve: Serve, tmp_path: Path) -> None:
    config = tmp_path / "warmroute.yaml"
    config.write_text("log_level: info\nretries: 1\nmax_head: 64KiB\n")
    router = await (await serve(*fleet.urls, config=config, settle_time=0)).ready()
    begun = asyncio.Event()

    async def stream(client: httpx.AsyncClient) -> str:
        text = ""
        async with client.stream("POST", "/v1/completions", json=LONG) as answer:
            async for part in answer.aiter_text():
                text += part
                begun.set()
        return text

    async with httpx.AsyncClient(base_url=router.front, timeout=30) as client:
        streaming = asyncio.create_task(stream(client))
        await begun.wait()
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
            router.signal(number)
            await router.says(f"{number.name} has no meaning here")
        config.write_text(
            "log_level: info\nretries: 1\nmax_head: 1KiB\nsettle_time: 9\nhost: '::'\n"
        )
        router.signal(signal.SIGHUP)
        await router.says("settings read again, changed: max_head")
        # A flag wins over the file: settle_time has not changed.
        assert "these settings have changed and need a restart: host" in router.log
        large = {"a": "x" * 2000}
        assert (await client.get("/v1/models", headers=large)).status_code == 431
        config.write_text("max_head: 3\nadmin_key: ''\n")
        router.signal(signal.SIGHUP)
        await router.says("stay as they were.*max_head.*admin_key")
        assert (await client.get("/v1/models", headers=large)).status_code == 431
        assert (await streaming).endswith("data: [DONE]\n\n")
        assert (await client.post("/v1/completions", json=SHORT)).status_code == 200
    router.signal()
    assert await router.exit() == 0


async def test_signals_while_it_starts(fleet: SimulatedFleet, serve: Serve) -> None:
    router = await serve(*fleet.urls, settle_time=0)
    listening = asyncio.create_task(router.ready())
    while not listening.done():
        # Before it ignores them, Python itself is starting, and a signal ends that.
        ignored = int(about(router.process.pid, "SigIgn") or "0", 16)
        if ignored >> (signal.SIGHUP - 1) & 1:
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
                router.signal(number)
        await asyncio.sleep(0.02)
    await listening
    router.signal()
    assert await router.exit() == 0


async def test_a_new_certificate_is_served(
    fleet: SimulatedFleet, serve: Serve, tmp_path: Path
) -> None:
    trustme = pytest.importorskip("trustme")
    first, second = trustme.CA(), trustme.CA()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def write(authority: object) -> None:
        issued = authority.issue_cert("127.0.0.1")  # type: ignore[attr-defined]
        issued.private_key_pem.write_to_path(key)
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    async def trusted(authority: object) -> bool:
        import ssl

        context = ssl.create_default_context()
        authority.configure_trust(context)  # type: ignore[attr-defined]
        async with httpx.AsyncClient(verify=context) as client:
            try:
                answer = await client.get(f"https://127.0.0.1:{router.port}/health")
            except httpx.ConnectError:
                return False
            return answer.status_code == 200

    write(first)
    router = await (await serve(*fleet.urls, tls_cert=cert, tls_key=key, settle_time=0)).ready()
    assert (await trusted(first), await trusted(second)) == (True, False)
    write(second)
    router.signal(signal.SIGHUP)
    await router.says("settings read again")
    assert (await trusted(first), await trusted(second)) == (False, True)
    # A key that is not the certificate's: the pair before it goes on.
    key.write_bytes(first.issue_cert("127.0.0.1").private_key_pem.bytes())
    router.signal(signal.SIGHUP)
    await router.says("the settings have errors and stay as they were")
    assert await trusted(second)
    router.signal()
    assert await router.exit() == 0


@contextlib.asynccontextmanager
async def bare(
    *command: str | Path, stderr: int, **env: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process whose standard error nobody reads here."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WARMROUTE_")}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env={**clean, "PYTHONPATH": str(ROOT), **env},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=stderr,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def answers(url: str, status: int = 200) -> None:
    async with asyncio.timeout(40), httpx.AsyncClient(timeout=5) as client:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(url)).status_code == status:
                    return
            await asyncio.sleep(0.05)


def flags(fleet: SimulatedFleet, port: int, admin: int) -> list[str]:
    return [
        *(f"--replica={url}" for url in fleet.urls),
        *(f"--port={port}", f"--admin-port={admin}", "--settle-time=0", "--health-interval=0.2"),
    ]


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
async def test_it_starts_without_standard_files(fleet: SimulatedFleet, closed: str) -> None:
    port, admin = free_port(), free_port()
    shell = ("/bin/sh", "-c", f'exec "$@" {closed}', "sh", *PROGRAM, "serve")
    async with bare(
        *shell, *flags(fleet, port, admin), stderr=asyncio.subprocess.DEVNULL
    ) as router:
        await answers(f"http://127.0.0.1:{admin}/readyz")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            for _ in range(20):
                answer = await client.post("/v1/completions", json=SHORT)
                assert answer.status_code == 200
                assert answer.json()["object"] == "text_completion"
        # What it has open under these numbers is no connection.
        for number in range(3):
            where = os.readlink(f"/proc/{router.pid}/fd/{number}")
            assert where == "/dev/null" or where.startswith("pipe:"), where
        router.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await router.wait() == 0


async def test_a_log_that_nobody_reads_stops_nothing(fleet: SimulatedFleet) -> None:
    port, admin = free_port(), free_port()
    reader, writer = os.pipe()
    try:
        # What the pipe takes before the router has said anything.
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
        command = (*PROGRAM, "serve", *flags(fleet, port, admin), "--log-level=debug")
        async with bare(*command, stderr=writer) as router:
            await answers(f"http://127.0.0.1:{admin}/readyz")
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                for _ in range(20):
                    assert (await client.post("/v1/completions", json=SHORT)).status_code == 200
            router.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                assert await router.wait() == 0
    finally:
        os.close(reader)
        os.close(writer)


FEW = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200)); "
FEW += "runpy.run_module('router.cli.main', run_name='__main__')"


async def test_more_clients_than_files(fleet: SimulatedFleet, serve: Serve) -> None:
    router = await serve(
        *fleet.urls, program=(sys.executable, "-c", FEW), settle_time=0, unhealthy_after=1
    )
    await router.ready()
    # The soft limit was raised to the hard one, and what that is enough for is told.
    await router.says("the limit is 200, enough for 63 clients")
    opened: list[socket.socket] = []
    try:
        for _ in range(400):
            client = socket.create_connection(("127.0.0.1", router.port), 20)
            opened.append(client)
        async with httpx.AsyncClient(timeout=20) as admin:
            started = time.monotonic()
            # Several rounds of probes, metrics and models, while all that clients may have is taken.
            while time.monotonic() - started < 2:
                answer = await admin.get(f"{router.admin}/replicas")
                assert [each["usable"] for each in answer.json()] == [True, True]
                await asyncio.sleep(0.1)
            told = (await admin.get(f"{router.admin}/metrics")).text
        assert "warmroute_client_connections 63" in told
        assert 'reason="connect"' not in told
        # Those that are in are served, each with a connection to a replica of its own.
        for client in opened[:63]:
            client.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        for client in opened[:63]:
            client.settimeout(20)
            assert (await asyncio.to_thread(client.recv, 100)).startswith(b"HTTP/1.1 200")
    finally:
        for client in opened:
            client.close()
    await answers(f"{router.front}/health")
    router.signal()
    assert await router.exit() == 0
    assert "unhealthy" not in router.log
    assert "restarted" not in router.log


async def test_two_supervisors_do_not_share_a_port(fleet: SimulatedFleet, serve: Serve) -> None:
    one = await (await serve(*fleet.urls, workers=2, settle_time=0)).ready()
    other = await serve(*fleet.urls, workers=2, port=one.port)
    alone = await serve(*fleet.urls, port=one.port)
    assert (await other.exit(), await alone.exit()) == (1, 1)
    for refused in (other, alone):
        assert "cannot listen" in refused.log
        assert "give another --port or --admin-port" in refused.log
    async with httpx.AsyncClient(base_url=one.front, timeout=30) as client:
        assert (await client.post("/v1/completions", json=SHORT)).status_code == 200
    one.signal()
    assert await one.exit() == 0
    # Connections that are closing still do not keep the port from the next one.
    again = await (await serve(*fleet.urls, workers=2, port=one.port, settle_time=0)).ready()
    again.signal()
    assert await again.exit() == 0


def children(router: Process) -> set[int]:
    pid = router.process.pid
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.timeout(180)  # it waits for heartbeats that do not come
async def test_a_frozen_worker_is_replaced(fleet: SimulatedFleet, serve: Serve) -> None:
    router = await (await serve(*fleet.urls, workers=2, settle_time=0)).ready()
    frozen, other = sorted(children(router))
    os.kill(frozen, signal.SIGSTOP)
    await router.says(r"worker \d does not respond")
    await router.says(r"ended with status -9")
    await router.ready()
    assert frozen not in children(router)
    assert other in children(router)
    for number in (signal.SIGUSR1, signal.SIGHUP):
        router.signal(number)
    await router.says("settings read again.*\n(.*\n)*.*settings read again")
    assert len(children(router)) == 2
    # The whole machine stood still: nobody is to blame.
    os.kill(router.process.pid, signal.SIGSTOP)
    await until_stopped(router.process.pid)
    os.kill(router.process.pid, signal.SIGCONT)
    await router.ready()
    assert router.log.count("does not respond") == 1
    # One that is frozen when all are to stop does not keep the others waiting for ever.
    os.kill(other, signal.SIGSTOP)
    router.signal()
    await router.exit()
    assert router.log.count("does not respond") == 2


async def test_a_router_in_its_own_fleet_with_workers(fleet: SimulatedFleet, serve: Serve) -> None:
    port = free_port()
    urls = (*fleet.urls, f"http://127.0.0.2:{port}")
    router = await (await serve(*urls, workers=2, port=port, host="0.0.0.0", settle_time=0)).ready()
    await router.says("127.0.0.2:.*leads back to this router itself")
    async with httpx.AsyncClient(base_url=router.front, timeout=30) as client:
        for _ in range(10):
            assert (await client.post("/v1/completions", json=SHORT)).status_code == 200
    router.signal()
    assert await router.exit() == 0
    assert f"127.0.0.2:{port}: ready" not in router.log
