"""Where the microseconds of a request go, part by part: python -m bench.where

Two ways of measuring, in rounds that take turns:

- In this process, a whole router gets its bytes by calls, with no sockets: the thread's CPU time of a
  request, and what each part takes of it. The parts are timed by a wrapper around a few functions,
  whose own cost is measured and taken off; a part is without what it calls of the others. It is the
  median over requests, so that a busy machine shifts little, and a function that is reached cold
  now and then counts as it usually is.
- With sockets (--sockets), the router in a process of its own beside the least that a proxy in
  Python on uvloop can do: a connection's reads are written to the other side as they are. User and
  system time of both. What the floor takes is no work of the router's.

Run in another directory's modules, such as compiled ones, by PYTHONPATH.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from time import perf_counter_ns, thread_time_ns
from typing import Any, Final

import msgspec
import uvloop

from bench import upstream as replica_bytes
from bench.bodies import bodies
from bench.drive import drive, request_bytes
from bench.proxies import TICKS, cpu_seconds, free_port, process, wait_for, warmroute
from router.app import App
from router.config import Settings
from router.http.bookkeeping import Bookkeeping
from router.http.client_connection import ClientConnection
from router.http.exchange import Exchange
from router.http.relay import EventStream, Relay
from router.http.upstream import UpstreamConnection
from router.http.watching import Watch
from router.scheduling.placer import Placement, Placer
from router.telemetry.access_log import AccessLog
from router.telemetry.explain import Explain
from router.telemetry.telemetry import Telemetry

REPLICAS: Final = 8
IN_FLIGHT: Final = 16
CHAT: Final = b"/v1/chat/completions"

# part -> the functions that make it up. A function's time is without that of others listed here.
PARTS: Final[dict[str, list[tuple[type, str]]]] = {
    "read the request": [(ClientConnection, "data_received")],
    "parse_chat": [],  # found through the path's rule
    "place": [(Placer, "place")],
    "place: first token, end": [(Placement, "first_token"), (Placement, "finished")],
    "exchange: start": [(ClientConnection, "_begin")],
    "send: head built": [(UpstreamConnection, "send")],
    "read the answer": [(UpstreamConnection, "data_received")],
    "exchange: respond": [(Exchange, "respond")],
    "relay": [(Relay, "begin"), (Relay, "feed")],
    "events, usage": [(EventStream, "feed"), (Watch, "feed")],
    "exchange: end": [(Exchange, "answered")],
    "record": [(Bookkeeping, "_close_record")],
    "metrics": [(Telemetry, "observe")],
    "explain": [(Explain, "add")],
    "access log": [(AccessLog, "add")],
}


class Transport:
    """Takes what is written. Not a real one's cost: that is in the floor."""

    def __init__(self, socket_: socket.socket) -> None:
        self._socket = socket_
        self.sent: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def writelines(self, parts: list[bytes]) -> None:
        self.sent.extend(parts)

    def get_extra_info(self, _name: str) -> socket.socket:
        return self._socket

    def set_write_buffer_limits(self, _high: int, _low: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Clock:
    """Time of each part in each request, without that of the parts it calls."""

    def __init__(self) -> None:
        self.own: dict[str, int] = {}
        self._within = 0
        self.inside = self.outside = 0.0
        """Nanoseconds that a wrapper adds to its own part, and to the part that called it."""
        self._calibrate()

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """This function, with its time added to a part."""
        own, clock = self.own, perf_counter_ns

        def wrapper(*args: Any) -> Any:
            outer = self._within
            self._within = 0
            start = clock()
            try:
                return call(*args)
            finally:
                spent = clock() - start
                own[part] = own.get(part, 0) + spent - self._within - int(self.inside)
                self._within = outer + spent + int(self.outside)

        return wrapper

    def _calibrate(self) -> None:
        def nothing() -> None:
            pass

        empty = self.timed("empty", nothing)

        def hundred() -> None:
            for _ in range(100):
                empty()

        def plain() -> None:
            for _ in range(100):
                nothing()

        caller = self.timed("caller", hundred)
        without = self.timed("without", plain)
        inside, outside = [], []
        for _ in range(300):
            self.own.clear()
            caller()
            without()
            inside.append(self.own["empty"] / 100)
            outside.append((self.own["caller"] - self.own["without"]) / 100)
        # The call of the function itself is in both `inside` and `without`.
        self.inside, self.outside = median(inside), max(0.0, median(outside))
        self.own.clear()

    @contextmanager
    def installed(self, app: App) -> Iterator[None]:
        """The parts' functions are timed."""
        rule = app.gateway.paths.exact[CHAT]
        parse = rule.parse
        assert parse is not None
        kept = [(cls, name, getattr(cls, name)) for each in PARTS.values() for cls, name in each]
        for part, each in PARTS.items():
            for cls, name in each:
                setattr(cls, name, self.timed(part, getattr(cls, name)))
        msgspec.structs.force_setattr(rule, "parse", self.timed("parse_chat", parse))
        try:
            yield
        finally:
            msgspec.structs.force_setattr(rule, "parse", parse)
            for cls, name, was in kept:
                setattr(cls, name, was)


class Driver:
    """Feeds one router with requests and answers, IN_FLIGHT at a time, on one thread."""

    def __init__(self, app: App, stream: bool) -> None:
        self._app = app
        self._socket = socket.socket()
        events = [replica_bytes.EVENT] * replica_bytes.CHUNKS
        end = [replica_bytes.USAGE, replica_bytes.DONE, b"0\r\n\r\n"]
        self._answer = [replica_bytes.HEAD, *events, *end] if stream else [replica_bytes.ANSWER]
        self._requests = [request_bytes(body) for body in bodies(4_000, 300, stream=stream)]
        self._turn = 0

    def connect(self) -> None:
        """Connections on both sides, which later requests use again."""
        gateway = self._app.gateway
        self._clients = deque[ClientConnection]()
        for _ in range(IN_FLIGHT):
            client = ClientConnection(gateway, self._app.front.clients)
            client.connection_made(Transport(self._socket))  # type: ignore[arg-type]
            self._clients.append(client)
        for pool in gateway.pools:
            pool.clear()
            for _ in range(IN_FLIGHT):
                connection = UpstreamConnection(pool)
                connection.connection_made(Transport(self._socket))  # type: ignore[arg-type]
                pool.give(connection)

    def close(self) -> None:
        for client in self._clients:
            client.connection_lost(None)
        for pool in self._app.gateway.pools:
            pool.clear()

    def run(self, count: int, after: Callable[[], None] | None = None) -> None:
        """So many requests; after: called after each."""
        requests, answer, clients = self._requests, self._answer, self._clients
        open_: deque[UpstreamConnection] = deque()
        for number in range(count + IN_FLIGHT):
            if len(open_) == IN_FLIGHT or number >= count:
                if not open_:
                    break
                replica = open_.popleft()
                for piece in answer:
                    replica.data_received(piece)
            if number < count:
                client = clients[0]
                clients.rotate(-1)
                client.transport.sent.clear()  # type: ignore[attr-defined]
                self._turn += 1
                client.data_received(requests[self._turn % len(requests)])
                exchange = client.exchange
                assert exchange is not None
                assert exchange.upstream is not None
                exchange.upstream.transport.sent.clear()  # type: ignore[attr-defined]
                open_.append(exchange.upstream)
            if after is not None:
                after()


async def in_process(ports: list[int], rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Case -> part -> microseconds a request."""
    app = App(
        Settings(
            host="127.0.0.1",
            port=0,
            admin_port=0,
            replicas=tuple(f"http://127.0.0.1:{port}" for port in ports),
        )
    )
    clock = Clock()
    found: dict[str, dict[str, float]] = {}
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        app.access_log = AccessLog(1.0, fd=sink)
        await app.start()
        await app.ready()
        for case, stream in (("4 KB", False), ("100 chunks", True)):
            many = count // 10 if stream else count
            driver = Driver(app, stream)
            whole: list[float] = []
            parts: dict[str, list[int]] = {part: [] for part in PARTS}

            def collect(parts: dict[str, list[int]] = parts) -> None:
                for part, values in parts.items():
                    values.append(clock.own.get(part, 0))
                clock.own.clear()

            for turn in range(rounds + 1):
                driver.connect()
                start = thread_time_ns()
                driver.run(many)
                spent = thread_time_ns() - start
                driver.close()
                if turn:
                    whole.append(spent / many / 1e3)
                with clock.installed(app):
                    driver.connect()
                    clock.own.clear()
                    driver.run(many, collect if turn else None)
                    driver.close()
                # The log's thread, health and the rest have their turn.
                await asyncio.sleep(0.01)
            table = {part: median(values) / 1e3 for part, values in parts.items()}
            table["not in a part"] = median(whole) - sum(table.values())
            table["all"] = median(whole)
            table["all, least"] = min(whole)
            found[case] = table
        await app.stop()
    finally:
        os.close(sink)
    return found


# -- the floor


class Here(asyncio.Protocol):
    """The client's side of the floor: what comes goes to a replica's connection."""

    def __init__(self, idle: list[There], ports: list[int]) -> None:
        self.idle = idle
        self._ports = ports

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        there = self.idle.pop()
        there.here = self
        there.transport.write(data)


class There(asyncio.Protocol):
    """The replica's side of the floor: what comes goes to the client."""

    here: Here

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        here = self.here
        here.transport.write(data)
        if data[-5:] == b"0\r\n\r\n" or (data[-1:] == b"}" and data[:4] == b"HTTP"):
            here.idle.append(self)


async def floor(port: int, ports: list[int]) -> None:
    """Serve until killed. Enough connections are open before the first request."""
    loop = asyncio.get_running_loop()
    idle: list[There] = []
    for number in range(128):
        where = ports[number % len(ports)]
        idle.append((await loop.create_connection(There, "127.0.0.1", where))[1])
    await loop.create_server(lambda: Here(idle, ports), "127.0.0.1", port)
    await asyncio.Event().wait()


@contextmanager
def least(ports: list[int]) -> Iterator[tuple[int, int]]:
    """The floor, in a process of its own."""
    port = free_port()
    command = ("-m", "bench.where", "--floor", str(port), *map(str, ports))
    with process(sys.executable, *command) as child:
        wait_for(port)
        yield port, child.pid


def user_and_system(pid: int) -> tuple[float, float]:
    """CPU seconds so far; the kernel tells the two apart by ticks, and both together exactly."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


def with_sockets(ports: list[int], rounds: int, size: float) -> dict[str, dict[str, list[float]]]:
    """Case -> proxy -> [user, system] microseconds a request."""
    cases = {
        "4 KB": (bodies(4_000, 300), 32, 1500.0, int(3000 * size)),
        "100 chunks": (bodies(4_000, 300, stream=True), 64, 80.0, int(240 * size)),
    }
    totals: dict[str, dict[str, list[list[float]]]] = {}
    with ExitStack() as stack:
        running = {
            "warmroute": stack.enter_context(warmroute(ports)),
            "floor": stack.enter_context(least(ports)),
        }
        for turn in range(rounds + 1):
            for case, (sent, connections, rate, count) in cases.items():
                for name, (port, pid) in running.items():
                    before = cpu_seconds(pid), *user_and_system(pid)
                    uvloop.run(drive(port, sent, count, connections, rate))
                    after = cpu_seconds(pid), *user_and_system(pid)
                    if turn:
                        spent = [(b - a) / count * 1e6 for a, b in zip(before, after, strict=True)]
                        totals.setdefault(case, {}).setdefault(name, []).append(spent)
    found: dict[str, dict[str, list[float]]] = {}
    for case, by in totals.items():
        found[case] = {}
        for name, values in by.items():
            exact = median(each[0] for each in values)
            ticks = sum(each[1] + each[2] for each in values)
            system = sum(each[2] for each in values) / ticks if ticks else 0.0
            found[case][name] = [exact * (1 - system), exact * system]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=2000, help="a round, in this process")
    parser.add_argument("--sockets", action="store_true", help="with sockets too")
    parser.add_argument(
        "--size", type=float, default=1.0, help="requests with sockets, as a factor"
    )
    parser.add_argument("--json")
    parser.add_argument("--floor", type=int, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.floor:
        with suppress(KeyboardInterrupt):
            uvloop.run(floor(args.floor[0], args.floor[1:]))
        return 0
    with process(sys.executable, "-m", "bench.upstream", str(REPLICAS), read=True) as child:
        assert child.stdout is not None
        ports = [int(port) for port in child.stdout.readline().split()]
        parts = uvloop.run(in_process(ports, args.rounds, args.requests))
        gc.collect()
        sockets = with_sockets(ports, args.rounds, args.size) if args.sockets else {}
    cases = list(parts)
    print("CPU in microseconds a request, without sockets, medians")
    print(f"{'part':<26}" + "".join(f"{case:>12}" for case in cases))
    for part in parts[cases[0]]:
        print(f"{part:<26}" + "".join(f"{parts[case][part]:>12.1f}" for case in cases))
    if sockets:
        print("\nwith sockets at a steady rate: user, system")
        for name in ("floor", "warmroute"):
            row = "".join("{:>12.1f}{:>8.1f}".format(*sockets[case][name]) for case in cases)
            print(f"{name:<18}{row}")
    if args.json:
        Path(args.json).write_text(json.dumps({"parts": parts, "sockets": sockets}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
