"""Memory of the router when many clients stop reading their streams: it has to stay where it is.

Clients ask for streams that never end and read nothing. What the router then holds for each is bounded by its
own buffers, and does not grow with time. The connections are given an Ethernet's segment size, since loopback's
lets the kernel hold megabytes for each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import socket
import sys
import time
from pathlib import Path

import uvloop

from bench.memory import resident
from bench.proxies import process, warmroute

STREAMS = 10_000
SEGMENT = 1400
TARGET = 100_000
_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 400 + b'"}}]}\n\n'
_CHUNKS = (b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)) * 8
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_SMALL = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b"
_MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'


def more_files() -> None:
    """Both ends of every stream are open files of the router."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (1 << 16, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, hard)))
        except (ValueError, OSError):
            continue
        return


class Endless(asyncio.Protocol):
    """A replica's connection: every POST is answered for ever, as fast as it is read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.writing = False
        self.paused = False

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET /v1/models"):
            self.transport.write(_SMALL % (len(_MODELS), _MODELS))
        elif data.startswith(b"GET"):
            self.transport.write(_SMALL % (0, b""))
        elif data.startswith(b"POST"):
            self.transport.write(_HEAD)
            self.go_on()

    def go_on(self) -> None:
        if not self.paused and not self.transport.is_closing():
            self.transport.write(_CHUNKS)
            asyncio.get_running_loop().call_soon(self.go_on)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.go_on()


async def serve() -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
    server = await asyncio.get_running_loop().create_server(Endless, sock=listening, backlog=4096)
    print(listening.getsockname()[1], flush=True)
    await server.serve_forever()


def ask(port: int) -> socket.socket:
    """Open a client that sends a request and never reads the answer."""
    client = socket.socket()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}'
    client.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    return client


def still(pid: int, seconds: float) -> int:
    """Wait until a process's size has not grown for so long. Bytes."""
    most, since = resident(pid), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.5)
        now = resident(pid)
        if now > most * 1.001:
            most, since = now, time.monotonic()
    return most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--seconds", type=float, default=10.0, help="without growth at the end")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json")
    args = parser.parse_args()
    more_files()
    if args.serve:
        uvloop.run(serve())
        return 0
    with process(sys.executable, "-m", "bench.stalled", "--serve", read=True) as replica:
        assert replica.stdout is not None
        ports = [int(replica.stdout.readline())]
        flags = ("--chunk-timeout=3600", "--health-timeout=60")
        with warmroute(ports, *flags) as (port, pid):
            before = resident(pid)
            clients = [ask(port) for _ in range(args.streams)]
            most = still(pid, args.seconds)
            each = (most - before) / len(clients)
            for client in clients:
                client.close()
            time.sleep(3)
            after = resident(pid)
    verdict = "" if each <= TARGET else "  missed"
    print(
        f"{args.streams} stalled streams: {each / 1000:.1f} KB each (target {TARGET / 1000:.0f})"
        f"{verdict}; the router had {before >> 20} MB before, {most >> 20} MB with them, and "
        f"{after >> 20} MB when they had left"
    )
    if args.json:
        Path(args.json).write_text(json.dumps({"bytes_per_stalled_stream": each, "target": TARGET}))
    return 1 if each > TARGET else 0


if __name__ == "__main__":
    sys.exit(main())
