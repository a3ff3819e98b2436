"""`warmroute state`: what routers share, as it lies in Redis; and to make them forget a replica."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any

import msgspec

from router.cli.flags import add_few, load_few
from router.config import Settings
from router.state.codec import Writer, name_key
from router.state.keys import Keys, position
from router.state.redis_client import Client, errors
from router.state.routers import RouterInfo, alive, read_routers
from router.state.transports import redis_connector

OK, FAILED = 0, 1
ALIVE = 6.0
"""Seconds since its last word within which a router counts as alive. It speaks every 2 s."""
TIMEOUT_S = 5.0
"""For each of Redis' replies."""
_SETTINGS = ("state", "state_prefix", "state_ca")


class ReplicaSnapshot(msgspec.Struct):
    """What Redis has of one replica."""

    name: str
    blocks: int
    bytes: int
    age: float
    """Seconds since it was written."""


class Report(msgspec.Struct):
    """What `warmroute state` shows."""

    routers: dict[str, RouterInfo]
    keeper: str
    replicas: list[ReplicaSnapshot]
    batches: int
    """Number of batches in the stream."""
    stream_bytes: int
    behind: float
    """Seconds of stream a router that starts has to replay after the maps."""


def add(commands: Any) -> None:
    """Add the command. commands: what argparse's add_subparsers returned."""
    state = commands.add_parser(
        "state",
        help="show what routers share in Redis, or make them forget a replica",
        usage="%(prog)s [--state URL] [--json] [flush --replica NAME] [--config FILE]",
        description="Show the routers, replicas, blocks, bytes and lag in the shared state. With "
        "flush, make all routers forget what a replica holds, as when it restarted.",
    )
    state.add_argument("action", nargs="?", choices=("show", "flush"), default="show")
    state.add_argument("--replica", metavar="NAME", dest="flushed", help="the replica to flush")
    state.add_argument("--json", action="store_true", help="for programs")
    add_few(state, _SETTINGS)


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit status. Raises ConfigError for settings that are wrong."""
    settings = load_few(parsed, _SETTINGS)
    if not settings.state:
        return _fail("no state is set: give --state redis://HOST:6379, or `state` in the file")
    if parsed.action == "flush" and not parsed.flushed:
        return _fail("flush which replica? --replica NAME, as `warmroute state` shows it")
    try:
        return asyncio.run(_run(settings, parsed))
    except errors() as error:
        return _fail(f"{settings.state}: {error}")


def _fail(why: str) -> int:
    print(f"warmroute: {why}", file=sys.stderr)
    return FAILED


async def _run(settings: Settings, parsed: argparse.Namespace) -> int:
    keys = Keys(settings.state_prefix)
    client = await redis_connector(settings).open(keys.facts, TIMEOUT_S)
    try:
        if parsed.action == "flush":
            return await _flush(client, keys, parsed.flushed)
        report = await read(client, keys)
    finally:
        await client.aclose()
    if parsed.json:
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        print(shown(report))
    return OK


async def read(client: Client, keys: Keys) -> Report:
    """Everything the report has. Raises one of `redis_client.errors`."""
    routers = read_routers(await client.hgetall(keys.routers))
    keeper = await client.get(keys.keeper) or b""
    replicas = []
    for name, about in (await client.hgetall(keys.maps)).items():
        blocks, count, wall = map(int, about.split())
        age = max(time.time() - wall / 1000, 0.0)
        replicas.append(ReplicaSnapshot(name.decode(), blocks, count, round(age, 1)))
    start = await client.get(keys.position)
    newest = await client.xrevrange(keys.facts, count=1)
    behind = 0.0
    if newest and start:
        behind = max(position(newest[0][0])[0] - position(start)[0], 0) / 1000
    return Report(
        {f"{router:016x}": info for router, info in routers.items()},
        keeper.decode(),
        sorted(replicas, key=lambda replica: replica.name),
        await client.xlen(keys.facts),
        await client.memory_usage(keys.facts) or 0,
        round(behind, 1),
    )


def shown(report: Report) -> str:
    """The report for people."""
    lines = [
        f"{'router':<18}{'host, process':<28}{'state':<8}{'blocks':>10}{'in flight':>11}"
        f"{'hears':>7}{'lag':>9}"
    ]
    for router, info in sorted(report.routers.items(), key=lambda item: item[1].started):
        state = "alive" if alive(info, ALIVE) else "silent"
        mark = "*" if router == report.keeper else ""
        lines.append(
            f"{router + mark:<18}{f'{info.host}, {info.pid}':<28}{state:<8}{info.blocks:>10}"
            f"{info.in_flight:>11}{info.routers:>7}{info.lag * 1000:>7.0f} ms"
        )
    if not report.routers:
        lines.append("none")
    lines += ["", f"{'replica':<46}{'blocks':>10}{'bytes':>12}{'written':>12}"]
    lines += [
        f"{replica.name:<46}{replica.blocks:>10}{replica.bytes:>12}{replica.age:>8.0f} s ago"
        for replica in report.replicas
    ] or ["none"]
    blocks = sum(replica.blocks for replica in report.replicas)
    count = sum(replica.bytes for replica in report.replicas)
    lines += [
        f"{f'{len(report.replicas)} in all':<46}{blocks:>10}{count:>12}",
        "",
        f"stream: {report.batches} batches, {report.stream_bytes} bytes; a router that starts "
        f"replays {report.behind:.0f} s of it. * writes the maps.",
    ]
    return "\n".join(lines)


async def _flush(client: Client, keys: Keys, replica: str) -> int:
    """Tell the routers, and take the map away. The stream's position stays: what it told of the
    replica before is undone by what it is told now."""
    names = [name.decode() for name in await client.hkeys(keys.maps)]
    if replica not in names:
        there = ", ".join(sorted(names)) or "none"
        return _fail(f"no replica {replica!r} in the shared state; there are: {there}")
    writer = Writer()
    writer.forgot(name_key(replica))
    entry = await client.xadd(keys.facts, {b"f": writer.batch(0, 0)})
    await client.delete(keys.map(replica))
    await client.hdel(keys.maps, replica)
    print(f"{replica} is forgotten, as of {entry.decode()}")
    return OK
