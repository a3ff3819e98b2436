"""What the endpoint picker costs behind a real Envoy, beside the proxy: CPU of each process, and latency.

    python -m bench.picker
    python -m bench.picker --rounds 2 --size 0.3

All stand in front of the same replicas and get the same bytes; rounds of them take turns, and the
median counts. `envoy` is Envoy without a picker, round robin: what the others' latency is compared
with. `echo` answers every call with one fixed endpoint: what gRPC and its messages cost, without
reading the prompt, choosing, and books.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import uvloop
import yaml

from bench import envoy
from bench.bodies import bodies
from bench.drive import drive, request_bytes
from bench.proxies import cpu_seconds, free_port, process, wait_for, warmroute

TARGET_CPU_US = 400.0
TARGET_ADDED_MS = 1.0
REPLICAS = 8
_DUPLEX = "FULL_DUPLEX_STREAMED"
MODES = {
    "picker": (_DUPLEX, "NONE"),
    "picker, answers shown": (_DUPLEX, _DUPLEX),
    "picker, buffered": ("BUFFERED", "NONE"),
    "echo": (_DUPLEX, "NONE"),
}
"""Name -> what Envoy shows of requests and of answers."""
CASES = {
    "4 KB": (bodies(4_000, 300), 16, 400.0, 800),
    "64 KB": (bodies(64_000, 120), 16, 200.0, 300),
    "stream": (bodies(4_000, 300, stream=True), 32, 60.0, 120),
}
"""Name -> bodies, connections, requests a second, requests a round."""


class Running(NamedTuple):
    """One way to the replicas."""

    port: int
    pid: int
    """Of the picker or proxy; of Envoy where there is neither."""
    envoy: int
    """Of Envoy; 0 where there is none."""


@contextmanager
def front(folder: Path, made: dict[str, object], port: int) -> Iterator[int]:
    """Envoy with this configuration; its process."""
    path = folder / f"{port}.yaml"
    path.write_text(yaml.safe_dump(made))
    command = (str(envoy.program()), "-c", str(path), "-l", "error")
    with process(*command, "--concurrency", "1", "--use-dynamic-base-id") as child:
        wait_for(port)
        yield child.pid


@contextmanager
def without_picker(folder: Path, ports: list[int]) -> Iterator[Running]:
    port = free_port()
    made = envoy.configuration(port, 1, ports)
    manager = made["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
    del manager["typed_config"]["http_filters"][0]
    with front(folder, made, port) as pid:
        yield Running(port, pid, pid)


@contextmanager
def with_picker(name: str, folder: Path, ports: list[int]) -> Iterator[Running]:
    port, own = free_port(), free_port()
    if name == "echo":
        command = ["-m", "bench.picker", "--echo", str(own), str(ports[0])]
    else:
        replicas = [f for p in ports for f in ("--replica", f"http://127.0.0.1:{p}")]
        command = ["-m", "router.cli.main", "picker", "--host", "127.0.0.1", "--port", str(own)]
        command += ["--admin-port", str(free_port()), *replicas]
    request, response = MODES[name]
    made = envoy.configuration(port, own, ports, request=request, response=response)
    with process(sys.executable, *command) as picker:
        wait_for(own)
        time.sleep(1.0)
        with front(folder, made, port) as pid:
            yield Running(port, picker.pid, pid)


@contextmanager
def proxy(ports: list[int]) -> Iterator[Running]:
    with warmroute(ports) as (port, pid):
        yield Running(port, pid, 0)


async def latencies(port: int, made: list[bytes], count: int) -> list[float]:
    """Seconds of requests one after the other, on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = []
    for number in range(count):
        request = request_bytes(made[number % len(made)])
        begun = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if length:
            await reader.readexactly(int(length))
        else:
            await reader.readuntil(b"\r\n0\r\n\r\n")
        found.append(time.perf_counter() - begun)
    writer.close()
    return found


class Measured(NamedTuple):
    """Medians over rounds."""

    cpu_us: dict[str, dict[str, float]]
    """Case -> way -> of the picker or proxy, for each request."""
    envoy_us: dict[str, dict[str, float]]
    p50_ms: dict[str, float]
    """At 4 KB, by way."""


def measure(factor: float, rounds: int) -> Measured:
    """Every way in turn, so many rounds after one that does not count."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        replicas = stack.enter_context(
            process(sys.executable, "-m", "bench.upstream", str(REPLICAS), read=True)
        )
        assert replicas.stdout is not None
        ports = [int(p) for p in replicas.stdout.readline().split()]
        ways = {name: stack.enter_context(with_picker(name, folder, ports)) for name in MODES}
        ways["proxy"] = stack.enter_context(proxy(ports))
        ways["envoy"] = stack.enter_context(without_picker(folder, ports))
        ways["none"] = Running(ports[0], replicas.pid, 0)
        cpu: dict[tuple[str, str], list[float]] = {}
        fronts: dict[tuple[str, str], list[float]] = {}
        p50: dict[str, list[float]] = {}
        for turn in range(rounds + 1):
            for case, (sent, connections, rate, count) in CASES.items():
                for name, way in ways.items():
                    if name == "none":
                        continue
                    many = int(count * factor)
                    before = cpu_seconds(way.pid), cpu_seconds(way.envoy) if way.envoy else 0.0
                    uvloop.run(drive(way.port, sent, many, connections, rate))
                    if turn:
                        used = (cpu_seconds(way.pid) - before[0]) / many * 1e6
                        cpu.setdefault((case, name), []).append(used)
                        if way.envoy:
                            used = (cpu_seconds(way.envoy) - before[1]) / many * 1e6
                            fronts.setdefault((case, name), []).append(used)
            for name, way in ways.items():
                found = uvloop.run(latencies(way.port, CASES["4 KB"][0], int(300 * factor)))
                if turn:
                    p50.setdefault(name, []).append(statistics.median(found) * 1e3)
    return Measured(_by_case(cpu), _by_case(fronts), {n: statistics.median(p50[n]) for n in p50})


def _by_case(found: dict[tuple[str, str], list[float]]) -> dict[str, dict[str, float]]:
    return {
        case: {name: statistics.median(found[c, name]) for c, name in found if c == case}
        for case in CASES
    }


class _Echo:
    """Answers every call with one endpoint: ``router.picker.grpc.Handler``."""

    def __init__(self, call: object, endpoint: str) -> None:
        from router.picker import messages

        self._call = call
        self._messages = messages
        self._change = messages.Change(endpoint)
        self._body: list[bytes] = []

    def message(self, data: bytes) -> None:
        messages, answer = self._messages, self._call.answer  # type: ignore[attr-defined]
        asked = messages.read(data)
        kind = asked.WhichOneof("request")
        if kind == "request_body":
            self._body.append(asked.request_body.body)
            if asked.request_body.end_of_stream:
                answer(messages.headers_as_before(self._change))
                for number, piece in enumerate(self._body, 1):
                    answer(messages.request_piece(piece, last=number == len(self._body)))
        elif kind == "response_headers":
            answer(messages.RESPONSE_HEADERS_GO_ON)

    def half_closed(self) -> None:
        self._call.finish()  # type: ignore[attr-defined]

    def gone(self) -> None: ...


async def echo(port: int, replica: int) -> None:
    """Serve until killed."""
    from router.picker.grpc import Call, Services
    from router.picker.http2 import Connection, Headers
    from router.picker.server import PROCESS

    class Owner:
        max_streams = 10_000
        services = Services({PROCESS: lambda call, _: _Echo(call, f"127.0.0.1:{replica}")}, 1 << 26)

        def opened(self, connection: Connection) -> None: ...
        def closed(self, connection: Connection) -> None: ...
        def call(self, connection: Connection, number: int, headers: Headers) -> Call:
            return self.services.call(connection, number, headers)

    owner = Owner()
    await asyncio.get_running_loop().create_server(lambda: Connection(owner), "127.0.0.1", port)
    await asyncio.Event().wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--size", type=float, default=1.0, help="requests a round, as a factor")
    parser.add_argument("--json")
    parser.add_argument("--echo", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.echo:
        uvloop.run(echo(*args.echo))
    try:
        envoy.program()
    except envoy.NoEnvoyError as error:
        print(f"left out: {error}")
        return 0
    found = measure(args.size, args.rounds)
    print(f"CPU, microseconds a request (Envoy's beside it), median of {args.rounds} rounds")
    print(
        f"{'':<24}" + "".join(f"{case:>18}" for case in CASES) + f"{'p50, 4 KB':>14}{'added':>10}"
    )
    for name, p50 in found.p50_ms.items():
        cells = []
        for case in CASES:
            own, beside = found.cpu_us[case].get(name), found.envoy_us[case].get(name)
            told = "" if own is None or name == "envoy" else f"{own:.0f}"
            cells.append(f"{told} ({beside:.0f})" if beside is not None else told)
        base = found.p50_ms["none" if name in ("proxy", "envoy", "none") else "envoy"]
        added = f"{p50 - base:+.2f} ms" if name != "none" else ""
        print(f"{name:<24}" + "".join(f"{c:>18}" for c in cells) + f"{p50:>11.2f} ms{added:>10}")
    own = found.cpu_us["4 KB"]["picker"]
    added_ms = found.p50_ms["picker"] - found.p50_ms["envoy"]
    for what, value, target, unit in (
        ("CPU at 4 KB", own, TARGET_CPU_US, "us"),
        ("added p50 at 4 KB", added_ms, TARGET_ADDED_MS, "ms"),
    ):
        word = "met" if value <= target else "missed"
        print(f"{what}: {value:.2f} {unit}, target {target:g} {unit}: {word}")
    if args.json:
        targets = {"cpu_us": TARGET_CPU_US, "added_p50_ms": TARGET_ADDED_MS}
        Path(args.json).write_text(json.dumps({**found._asdict(), "targets": targets}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
