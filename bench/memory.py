"""Memory of the router for each stream that is open and idle: resident size with and without them."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

import uvloop

from bench.proxies import process, warmroute

TARGET = 20_000
STREAMS = 2_000


def resident(pid: int) -> int:
    """The resident memory of a process, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} is gone")


class Held(asyncio.Protocol):
    """A client that asks for a stream and counts the first bytes of the answer."""

    def __init__(self, request: bytes, waiting: list[int], all_there: asyncio.Event) -> None:
        self._request = request
        self._waiting = waiting
        self._all_there = all_there
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        before = b"data: " in self._got
        self._got += data
        if not before and b"data: " in self._got:
            self._waiting[0] -= 1
            if not self._waiting[0]:
                self._all_there.set()


async def hold(port: int, pid: int, count: int) -> float:
    """Bytes for each of count streams; another count before them warms the allocator up."""
    body = (
        b'{"model":"m","stream":true,"hold":true,"messages":[{"role":"user","content":"'
        + b"word " * 800
        + b'"}]}'
    )
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    loop = asyncio.get_running_loop()
    sizes = [resident(pid)]
    for _ in range(2):
        waiting, all_there = [count], asyncio.Event()
        for _ in range(count):
            await loop.create_connection(
                lambda: Held(request, waiting, all_there), "127.0.0.1", port
            )
        await asyncio.wait_for(all_there.wait(), 60)
        sizes.append(resident(pid))
    return (sizes[2] - sizes[1]) / count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--json")
    args = parser.parse_args()
    with process(sys.executable, "-m", "bench.upstream", "4", read=True) as upstream:
        assert upstream.stdout is not None
        ports = [int(p) for p in upstream.stdout.readline().split()]
        with warmroute(ports) as (port, pid):
            each = uvloop.run(hold(port, pid, args.streams))
    verdict = "" if each <= TARGET else "  missed"
    print(
        f"memory for each idle stream: {each / 1000:.1f} KB (target {TARGET / 1000:.0f}){verdict}"
    )
    if args.json:
        Path(args.json).write_text(json.dumps({"bytes_per_idle_stream": each, "target": TARGET}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
