"""How long Python's garbage collector holds the router while streams are open: python -m bench.pauses

A whole router in this process gets its bytes by calls, as in bench.where. Many streams are opened and stay
open; beside them short ones come and go in waves. A pause is CPU time of the thread. Settings of the
collector take turns, each in a process of its own: the router's, and thresholds named by --against.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
from statistics import median
from time import thread_time_ns

import uvloop

from bench import upstream as replica_bytes
from bench.bodies import bodies
from bench.drive import request_bytes
from bench.proxies import process
from bench.where import REPLICAS, Transport
from router.app import App
from router.config import Settings
from router.http.client_connection import ClientConnection
from router.http.upstream import UpstreamConnection
from router.telemetry.access_log import AccessLog

WAVES = 20
WAVE = 500
"""Streams that come and go in each wave."""


class Streams:
    """Streams through one router, without sockets."""

    def __init__(self, app: App, most: int) -> None:
        self._app = app
        self._socket = socket.socket()
        self._requests = [request_bytes(body) for body in bodies(4_000, 300, stream=True)]
        gateway = app.gateway
        gateway.most_clients = gateway.files_for_clients = sys.maxsize
        for pool in gateway.pools:
            for _ in range(most):
                connection = UpstreamConnection(pool)
                connection.connection_made(Transport(self._socket))  # type: ignore[arg-type]
                pool.give(connection)

    def open(self, count: int) -> list[ClientConnection]:
        """New clients, each with a stream that has begun."""
        made = []
        for number in range(count):
            client = ClientConnection(self._app.gateway, self._app.front.clients)
            client.connection_made(Transport(self._socket))  # type: ignore[arg-type]
            client.data_received(self._requests[number % len(self._requests)])
            self._feed(client, replica_bytes.HEAD, replica_bytes.EVENT)
            made.append(client)
        return made

    def end(self, clients: list[ClientConnection]) -> None:
        """The answers end, and the clients leave."""
        for client in clients:
            end = (replica_bytes.USAGE, replica_bytes.DONE, b"0\r\n\r\n")
            self._feed(client, replica_bytes.EVENT, *end)
            client.connection_lost(None)

    def _feed(self, client: ClientConnection, *pieces: bytes) -> None:
        assert client.exchange is not None
        upstream = client.exchange.upstream
        assert upstream is not None
        for piece in pieces:
            upstream.data_received(piece)
        for transport in (upstream.transport, client.transport):
            transport.sent.clear()  # type: ignore[attr-defined]


async def watched(ports: list[int], count: int, thresholds: list[int]) -> dict[str, float]:
    """What the collector did; no thresholds: as the router sets it."""
    replicas = tuple(f"http://127.0.0.1:{port}" for port in ports)
    app = App(Settings(host="127.0.0.1", port=0, admin_port=0, replicas=replicas))
    app.access_log = AccessLog(1.0, fd=os.open(os.devnull, os.O_WRONLY))
    await app.start()
    await app.ready()
    if thresholds:
        gc.set_threshold(*thresholds)
    pauses: list[int] = []
    began = 0

    def heard(phase: str, _info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = thread_time_ns()
        else:
            pauses.append(thread_time_ns() - began)

    streams = Streams(app, count)
    gc.callbacks.append(heard)
    start = thread_time_ns()
    stay = streams.open(count)
    for _ in range(WAVES):
        streams.end(streams.open(WAVE))
    spent = thread_time_ns() - start
    gc.callbacks.remove(heard)
    streams.end(stay)
    await app.stop()
    return {
        "longest ms": max(pauses, default=0) / 1e6,
        "looks": len(pauses),
        "all ms": sum(pauses) / 1e6,
        "CPU us a stream": spent / (count + WAVES * WAVE) / 1e3,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", nargs="*", default=["50000,20,50", "700,10,10"])
    parser.add_argument("--one", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        ports = [int(port) for port in args.one[1].split(",")]
        thresholds = [int(each) for each in args.one[0].split(",") if each]
        print(json.dumps(uvloop.run(watched(ports, args.streams, thresholds))))
        return 0
    found: dict[str, list[dict[str, float]]] = {}
    with process(sys.executable, "-m", "bench.upstream", str(REPLICAS), read=True) as child:
        assert child.stdout is not None
        ports_text = ",".join(child.stdout.readline().split())
        for _ in range(args.rounds):
            for each in ("", *args.against):
                command = [sys.executable, "-m", "bench.pauses", "--one", each, ports_text]
                command += ["--streams", str(args.streams)]
                done = subprocess.run(
                    command, capture_output=True, text=True, check=True, timeout=300
                )
                found.setdefault(each or "the router's", []).append(json.loads(done.stdout))
    names = list(found["the router's"][0])
    print(f"{'collector':<16}" + "".join(f"{name:>18}" for name in names))
    for each, rounds in found.items():
        print(
            f"{each:<16}"
            + "".join(f"{median(one[name] for one in rounds):>18.1f}" for name in names)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
