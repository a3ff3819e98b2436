"""CPU of the router process for each request, beside nginx as a plain proxy and Starlette with httpx.

The three stand in front of the same replicas and get the same bytes. What is compared is CPU time of the
proxy's own process (user and system), not wall time, so that a busy machine shifts all alike; rounds of
the three take turns, at the same rate of requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import uvloop

from bench.bodies import bodies

TICKS = os.sysconf("SC_CLK_TCK")
TARGETS = {"4 KB": 3.0, "64 KB": 4.0, "400 KB": 5.0, "stream": 2.0}
REPLICAS = 8


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads, to a nanosecond where the kernel tells it."""
    with suppress(OSError, ValueError):
        total = 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Load:
    """Requests at a steady rate over a fixed set of connections, the same for every proxy.

    At a rate all of them reach, not as fast as each can: a proxy that keeps its neighbours busy is
    spared the cost of waking them, and would be measured under other conditions than a slower one.
    """

    def __init__(self, port: int, made: list[bytes], count: int, rate: float) -> None:
        self.port = port
        self.requests = [request_bytes(body) for body in made]
        self.count = count
        self.rate = rate
        self.sent = 0
        self.answered = 0
        self.waiting = 0
        self.free: list[Client] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, connections: int) -> None:
        """Send them all and wait for the answers."""
        loop = asyncio.get_running_loop()
        made = [
            (await loop.create_connection(lambda: Client(self), "127.0.0.1", self.port))[1]
            for _ in range(connections)
        ]
        self.free = list(made)
        self.start = loop.time()
        self._tick()
        try:
            async with asyncio.timeout(60):
                await self.done
        finally:
            for client in made:
                client.transport.close()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        due = min(self.count, int((loop.time() - self.start) * self.rate) + 1)
        self.waiting = due - self.sent
        self._send_waiting()
        if self.sent < self.count and not self.done.done():
            loop.call_later(max(0.0005, 1 / self.rate), self._tick)

    def _send_waiting(self) -> None:
        while self.waiting and self.free:
            self.waiting -= 1
            self.free.pop().send(self.requests[self.sent % len(self.requests)])
            self.sent += 1

    def over(self, client: Client) -> None:
        """Called when an answer is complete."""
        self.answered += 1
        self.free.append(client)
        if self.answered == self.count and not self.done.done():
            self.done.set_result(None)
        self._send_waiting()

    def fail(self, why: str) -> None:
        """Called when something makes the run void."""
        if not self.done.done():
            self.done.set_exception(RuntimeError(why))


class Client(asyncio.Protocol):
    """One connection that sends one request at a time."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.got = b""
        self.length = -1
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def send(self, request: bytes) -> None:
        self.got = b""
        self.length = -1
        self.busy = True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self.length == -1:
            self.got += data
            end = self.got.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.got[:end].lower()
            if not head.startswith(b"http/1.1 200"):
                self.load.fail(f"answer: {self.got[:300]!r}")
                return
            at = head.find(b"content-length: ")
            self.length = -2 if at < 0 else int(head[at + 16 :].split(b"\r\n", 1)[0])
            data = self.got[end + 4 :]
            self.got = b""
        if self.length == -2:
            self.got = (self.got + data)[-5:]
            whole = self.got == b"0\r\n\r\n"
        else:
            self.length -= len(data)
            whole = not self.length
        if whole:
            self.busy = False
            self.load.over(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.load.fail("a connection was closed early")


def request_bytes(body: bytes) -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway:8000\r\nAccept: application/json\r\n"
        b"Accept-Encoding: gzip, deflate\r\nUser-Agent: OpenAI/Python 1.60.0\r\n"
        b"Authorization: Bearer sk-x\r\nContent-Type: application/json\r\n"
        b"X-Stainless-Lang: python\r\nX-Stainless-Retry-Count: 0\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )


async def drive(port: int, made: list[bytes], count: int, connections: int, rate: float) -> None:
    """Send `count` requests at a rate over so many connections."""
    await Load(port, made, count, rate).run(connections)


@contextmanager
def process(
    *command: str, env: dict[str, str] | None = None, read: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A child whose output is read, or goes to /dev/null (a log is written all the same)."""
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE if read else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **(env or {})},
    )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


def wait_for(port: int) -> None:
    for _ in range(1200):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on {port}")


NGINX = """
worker_processes 1; daemon off; error_log {dir}/error.log crit; pid {dir}/pid;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir};
  uwsgi_temp_path {dir}; scgi_temp_path {dir}; client_body_buffer_size 1m; client_max_body_size 64m;
  keepalive_requests 1000000;
  upstream replicas {{ {servers} keepalive 256; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://replicas; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


@contextmanager
def nginx(ports: list[int]) -> Iterator[tuple[int, int]]:
    path = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        raise RuntimeError("nginx is not installed (Debian: apt-get install nginx-light)")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        servers = " ".join(f"server 127.0.0.1:{p};" for p in ports)
        config = Path(folder) / "nginx.conf"
        config.write_text(NGINX.format(dir=folder, servers=servers, port=port))
        os.chmod(folder, 0o777)
        with process(path, "-c", str(config)) as master:
            wait_for(port)
            children = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()
            try:
                yield port, int(children[0])
            finally:
                # A killed master leaves its worker behind.
                for child in children:
                    with suppress(ProcessLookupError):
                        os.kill(int(child), signal.SIGKILL)


@contextmanager
def warmroute(ports: list[int], *flags: str) -> Iterator[tuple[int, int]]:
    port, admin = free_port(), free_port()
    replicas = [f for p in ports for f in ("--replica", f"http://127.0.0.1:{p}")]
    with process(
        *(
            sys.executable,
            "-m",
            "router.cli.main",
            "serve",
            "--port",
            str(port),
            "--admin-port",
            str(admin),
        ),
        *replicas,
        *flags,
    ) as child:
        wait_for(port)
        time.sleep(1.0)
        yield port, child.pid


@contextmanager
def starlette(ports: list[int]) -> Iterator[tuple[int, int]]:
    port = free_port()
    env = {"BENCH_REPLICAS": ",".join(map(str, ports))}
    with process(
        *(sys.executable, "-m", "uvicorn", "bench.plain_proxy:app", "--port", str(port)),
        *("--log-level", "error", "--no-access-log"),
        env=env,
    ) as child:
        wait_for(port)
        yield port, child.pid


def measure(factor: float, rounds: int, names: list[str]) -> dict[str, dict[str, float]]:
    """Case -> proxy -> CPU microseconds for each request, the median over rounds."""
    # bodies, connections, requests a second, requests a round
    cases = {
        "4 KB": (bodies(4_000, 300), 32, 2000.0, 2000),
        "64 KB": (bodies(64_000, 120), 32, 800.0, 800),
        "400 KB": (bodies(400_000, 40), 16, 100.0, 150),
        "stream": (bodies(4_000, 300, stream=True), 64, 100.0, 200),
    }
    made = {"nginx": nginx, "warmroute": warmroute, "starlette+httpx": starlette}
    with process(sys.executable, "-m", "bench.upstream", str(REPLICAS), read=True) as upstream:
        assert upstream.stdout is not None
        ports = [int(p) for p in upstream.stdout.readline().split()]
        samples: dict[str, dict[str, list[float]]] = {
            case: {name: [] for name in names} for case in cases
        }
        with ExitStack() as stack:
            running = {name: stack.enter_context(made[name](ports)) for name in names}  # type: ignore[operator]
            for turn in range(rounds + 1):
                for case, (sent, connections, rate, count) in cases.items():
                    for name, (port, pid) in running.items():
                        many = int(count * factor)
                        pace = rate
                        if name.startswith("starlette"):
                            # It reaches no such rates.
                            many, pace = many // 5, rate / 10
                        before = cpu_seconds(pid)
                        uvloop.run(drive(port, sent, many, connections, pace))
                        used = cpu_seconds(pid) - before
                        if turn:
                            samples[case][name].append(used / many * 1e6)
    return {
        case: {name: statistics.median(values) for name, values in by.items()}
        for case, by in samples.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=float, default=1.0, help="requests a round, as a factor")
    parser.add_argument("--json")
    parser.add_argument("--without-starlette", action="store_true")
    args = parser.parse_args()
    names = ["nginx", "warmroute"] + ([] if args.without_starlette else ["starlette+httpx"])
    results = measure(args.size, args.rounds, names)
    print(f"CPU of the proxy process, microseconds a request, median of {args.rounds} rounds")
    print(f"{'case':<8}" + "".join(f"{name:>18}" for name in names) + f"{'ratio':>8}{'target':>8}")
    for case, by in results.items():
        ratio = by["warmroute"] / by["nginx"]
        print(
            f"{case:<8}"
            + "".join(f"{by[name]:>18.1f}" for name in names)
            + f"{ratio:>8.2f}{TARGETS[case]:>8.1f}{'  missed' if ratio > TARGETS[case] else ''}"
        )
    if args.json:
        Path(args.json).write_text(json.dumps({"cpu_us_per_request": results, "targets": TARGETS}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
