"""What requests that wait in the queue cost the router: memory for each with its socket, and CPU.

    python -m bench.waiting [--waiting 10000] [--json FILE]

A stream that goes on has the memory of the only replica, so that low priority waits in its lane.
The memory is what as many again take, after the first have warmed the allocator up. The CPU time
is that of the router's process, before any came, and while all wait. In the end all their clients
leave, and the books have to be at zero. Aims: 20 KB each, and not 1% of a core more than at rest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from pathlib import Path

import httpx
import uvloop

from bench.memory import resident
from bench.proxies import cpu_seconds, free_port, process, wait_for

AIM_BYTES = 20_000
AIM_CORE = 0.01
WATCHED_S = 10.0
TOKENS = 2000
"""Of the replica's KV cache: one prompt has half of it."""


class Client(asyncio.Protocol):
    """Sends one request and waits for its answer."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.answered = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if b"data: " in data:
            self.answered.set()


def request(number: int, *headers: str) -> bytes:
    """For a stream that has a first event and no end; 4 KB, of which no other has anything."""
    body = (
        b'{"model":"m","stream":true,"hold":true,"messages":[{"role":"user","content":"'
        + b"%07d " % number * 500
        + b'"}]}'
    )
    lines = "".join(f"{line}\r\n" for line in headers).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"%bContent-Length: %d\r\n\r\n%b" % (lines, len(body), body)
    )


class Router:
    """The router's process and what it tells."""

    def __init__(self, port: int, admin: str, pid: int) -> None:
        self.port = port
        self.admin = admin
        self.pid = pid

    async def waiting(self) -> int:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
            text = (await http.get(f"{self.admin}/metrics")).text
        lines = [each for each in text.splitlines() if each.startswith("warmroute_queue_waiting{")]
        return int(sum(float(each.rpartition(" ")[2]) for each in lines))

    async def until(self, count: int) -> None:
        async with asyncio.timeout(120):
            while await self.waiting() != count:  # noqa: ASYNC110
                await asyncio.sleep(0.2)

    async def core(self) -> float:
        """The share of a core that it takes now."""
        cpu, wall = cpu_seconds(self.pid), time.perf_counter()
        await asyncio.sleep(WATCHED_S)
        return (cpu_seconds(self.pid) - cpu) / (time.perf_counter() - wall)


async def measure(router: Router, count: int) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    clients: list[asyncio.Transport] = []

    async def come(*headers: str) -> Client:
        asked = request(len(clients), *headers)
        transport, client = await loop.create_connection(
            lambda: Client(asked), "127.0.0.1", router.port
        )
        clients.append(transport)
        return client

    out = {"core at rest": await router.core()}
    first = await come()
    await first.answered.wait()
    sizes = []
    for part in (1, 2):
        for _ in range(count // 2):
            await come("x-dynamo-request-priority: -1")
        await router.until(part * (count // 2))
        sizes.append(resident(router.pid))
    out["waiting"] = 2 * (count // 2)
    out["bytes each"] = (sizes[1] - sizes[0]) / (count // 2)
    out["core while they wait"] = await router.core()
    for transport in clients:
        transport.abort()
    await router.until(0)
    return out


def main() -> int:
    """The command `python -m bench.waiting`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most < args.waiting + 200:
        parser.error(f"a process may open {most} files here: --waiting has to be less by 200")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    port, admin = free_port(), free_port()
    with process(sys.executable, "-m", "bench.upstream", "1", read=True) as upstream:
        assert upstream.stdout is not None
        replica = f"http://127.0.0.1:{int(upstream.stdout.readline())}"
        flags = {
            "--port": port, "--admin-port": admin, "--replica": replica, "--kv-cache-tokens": TOKENS,
            "--queue-door": 0, "--queue-limit": args.waiting, "--queue-timeout": 0,
        }  # fmt: skip
        words = (str(word) for flag in flags.items() for word in flag)
        with process(sys.executable, "-m", "router.cli.main", "serve", *words) as child:
            wait_for(port)
            time.sleep(1.0)
            router = Router(port, f"http://127.0.0.1:{admin}", child.pid)
            out = uvloop.run(measure(router, args.waiting))
    more = out["core while they wait"] - out["core at rest"]
    missed = out["bytes each"] > AIM_BYTES or more > AIM_CORE
    for name, value in out.items():
        print(f"{name:24}{value:12,.4g}")
    print(
        "missed" if missed else "met", f"(aims: {AIM_BYTES:,} bytes, {AIM_CORE:.0%} of a core more)"
    )
    if args.json is not None:
        args.json.write_text(json.dumps(out, indent=2) + "\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
