"""What the router itself adds to a request with a prefill on another engine: time, and CPU.

Two routers stand before the same engines, which answer at once: one has an engine that prefills for
the other one, and splits every prompt; one has none. A client sends the same bodies to both, and by
itself to the engines: once as to one engine, and once in two legs, with the bytes that the router
would send. What is added is the difference. The four take turns, request by request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from pathlib import Path
from time import perf_counter

import uvloop

from bench.bodies import bodies
from bench.drive import request_bytes
from bench.proxies import cpu_seconds, process, warmroute
from router.disaggregation import bodies as legs
from router.disaggregation.nixl import Nixl

AIM_MS = 2.0
"""Added over the two legs, p50."""
SIZES = {"4 KB": 4_000, "64 KB": 64_000}
PATH = "/v1/chat/completions"
WAYS = ("one leg", "two legs", "direct", "direct twice")
_BUSY = request_bytes(
    b'{"model":"m","stream":true,"hold":true,"messages":[{"role":"user","content":"busy"}]}'
)
"""Has the engine that decodes be busy, so that a prefill there would slow somebody down."""


class Connection(asyncio.Protocol):
    """One request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.got += data
        head, found, body = self.got.partition(b"\r\n\r\n")
        if not found or self.answer.done():
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.answer.set_exception(RuntimeError(f"answer: {self.got[:300]!r}"))
            return
        length = head.lower().partition(b"content-length: ")[2].split(b"\r\n", 1)[0]
        if not length or len(body) >= int(length):
            self.answer.set_result(body)

    async def ask(self, request: bytes) -> bytes:
        """The body of the answer; of a stream, its beginning."""
        self.got = b""
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        async with asyncio.timeout(30):
            return await self.answer


async def connected(port: int) -> Connection:
    """A connection to a port of this machine."""
    loop = asyncio.get_running_loop()
    return (await loop.create_connection(Connection, "127.0.0.1", port))[1]


async def times(
    plain: int, split: int, decode: int, prefill: int, made: list[bytes]
) -> dict[str, list[float]]:
    """Seconds of each request each way. The first fifth warms up, and is not told."""
    ports = (plain, split, decode, prefill)
    one, two, decoder, prefiller = [await connected(port) for port in ports]
    busy = [await connected(plain), await connected(split)]
    for each in busy:
        await each.ask(_BUSY)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    asking = Nixl().asking("")
    told = legs.read_answer(await prefiller.ask(first_leg(made[0], asking))).params
    for body in made:
        request, first = request_bytes(body), first_leg(body, asking)
        second = request_bytes(body[:1] + legs.insertion(told) + body[1:])
        for name, sent in (
            ("one leg", ((one, request),)),
            ("direct", ((decoder, request),)),
            ("two legs", ((two, request),)),
            ("direct twice", ((prefiller, first), (decoder, second))),
        ):
            began = perf_counter()
            for connection, what in sent:
                answer = await connection.ask(what)
            seconds[name].append(perf_counter() - began)
            check(answer, fetched="two" in name or "twice" in name)
    for each in (one, two, decoder, prefiller, *busy):
        each.transport.close()
    return {name: each[len(made) // 5 :] for name, each in seconds.items()}


def first_leg(body: bytes, asking: bytes) -> bytes:
    """The request for a prefill."""
    return request_bytes(legs.prefill_body(body, PATH, asking))


def check(answer: bytes, *, fetched: bool) -> None:
    """Raises RuntimeError when a prompt was split, or was not, other than it should be."""
    if (b"fetched" in answer) != fetched:
        raise RuntimeError("a prompt was not split" if fetched else "a prompt was split")


async def used(pid: int, port: int, made: list[bytes], *, split: bool) -> float:
    """CPU seconds of a router for each of these requests, one after the other."""
    busy, client = await connected(port), await connected(port)
    await busy.ask(_BUSY)
    before = cpu_seconds(pid)
    for body in made:
        check(await client.ask(request_bytes(body)), fetched=split)
    found = (cpu_seconds(pid) - before) / len(made)
    busy.transport.close()
    client.transport.close()
    return found


def unlike(size: int, count: int, seed: int) -> list[bytes]:
    """Bodies that share nothing from their first word on: an engine that holds a prompt's beginning
    may prefill the rest itself."""
    return [
        body.replace(b'"content":"', b'"content":"%d-%d ' % (seed, number), 1)
        for number, body in enumerate(bodies(size, count, seed=seed))
    ]


def measure(count: int, rounds: int) -> dict[str, dict[str, float]]:
    """Case -> what is added in milliseconds, and CPU microseconds a request. Raises RuntimeError
    when a prompt was split otherwise than it should be."""
    found: dict[str, dict[str, float]] = {}
    with process(sys.executable, "-m", "bench.upstream", "2", read=True) as upstream:
        assert upstream.stdout is not None
        decode, prefill = (int(port) for port in upstream.stdout.readline().split())
        # A slow prefill, which pays to be had elsewhere.
        flags = ("--prefill-rate", "200")
        apart = ("--prefill", f"http://127.0.0.1:{prefill}", *flags)
        with (
            warmroute([decode], *flags) as (plain, plain_pid),
            warmroute([decode], *apart) as (split, split_pid),
        ):
            for number, (case, size) in enumerate(SIZES.items()):
                made = unlike(size, count, number)
                seconds = uvloop.run(times(plain, split, decode, prefill, made))
                p50 = {name: statistics.median(each) * 1e3 for name, each in seconds.items()}
                cpu: dict[str, list[float]] = {"one": [], "two": []}
                for turn in range(rounds):
                    fresh = unlike(size, count // 2, 10 + 10 * turn + number)
                    cpu["one"].append(uvloop.run(used(plain_pid, plain, fresh, split=False)) * 1e6)
                    cpu["two"].append(uvloop.run(used(split_pid, split, fresh, split=True)) * 1e6)
                found[case] = {
                    "added_one_leg_p50_ms": p50["one leg"] - p50["direct"],
                    "added_two_legs_p50_ms": p50["two legs"] - p50["direct twice"],
                    "cpu_one_leg_us": statistics.median(cpu["one"]),
                    "cpu_two_legs_us": statistics.median(cpu["two"]),
                }
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=400, help="requests each way")
    parser.add_argument("--rounds", type=int, default=3, help="of CPU")
    parser.add_argument("--json")
    options = parser.parse_args()
    results = measure(options.count, options.rounds)
    print("Added by the router, ms, and its CPU for a request, us")
    print(f"{'case':<8}{'one leg p50':>12}{'two legs p50':>14}{'CPU one':>10}{'two':>8}")
    for case, row in results.items():
        one, two, cpu_one, cpu_two = row.values()
        missed = "  missed" if two > AIM_MS else ""
        print(f"{case:<8}{one:>12.2f}{two:>14.2f}{cpu_one:>10.0f}{cpu_two:>8.0f}{missed}")
    if options.json:
        Path(options.json).write_text(json.dumps({"cases": results, "aim_ms": AIM_MS}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
