"""Loads what the others know: the maps, then the stream from where they were made."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from router.state.cache_snapshots import Position, decode
from router.state.codec import BadBatchError
from router.state.keys import Keys, position, position_text
from router.state.redis_client import Client
from router.state.routers import alive, read_routers
from router.state.sync import StateSync

log = logging.getLogger(__name__)

ROUTER_ALIVE_S: Final = 5.0
"""Seconds since a router's last word within which it is waited for."""
MAX_READ_SNAPSHOTS: Final = 8
"""Maps asked for at once."""
MAX_READ_ENTRIES: Final = 500
"""Entries of the stream asked for at once."""


async def load(client: Client, keys: Keys, shared: StateSync) -> tuple[Position, bool]:
    """Returns the place in the stream to listen from, and whether there was a map to load. Raises
    one of redis_client.errors.

    The end of the stream is read before anything else, and the place to begin before the maps:
    maps may be newer than that, never older, and what is told twice does no harm.
    """
    began = time.monotonic()
    start = position(await client.get(keys.position))
    newest = await client.xrevrange(keys.facts, count=1)
    end = position(newest[0][0]) if newest else (0, 0)
    routers = await client.hgetall(keys.routers)
    others = {
        router
        for router, info in read_routers(routers).items()
        if router != shared.router and alive(info, ROUTER_ALIVE_S)
    }
    before: dict[int, Position] = {}
    names = list(shared.names.items())
    for first in range(0, len(names), MAX_READ_SNAPSHOTS):
        some = names[first : first + MAX_READ_SNAPSHOTS]
        got = await client.mget([keys.map(name) for _, name in some])
        for (slot, name), data in zip(some, got, strict=True):
            if data is None or shared.names.get(slot) != name:
                continue
            try:
                found = decode(data, time.time())
            except BadBatchError as error:
                log.warning("state: skipped an unreadable snapshot of replica %s: %s", name, error)
                continue
            before[slot] = found.position
            shared.adopt(slot, found)
            await asyncio.sleep(0)
    entries = 0
    at = start
    while at < end:
        reply = await client.xrange(
            keys.facts, "(" + position_text(at), position_text(end), count=MAX_READ_ENTRIES
        )
        if not reply:
            break
        for entry, fields in reply:
            at = position(entry)
            shared.peers.replay(fields.get(b"f", b""), before, at)
        entries += len(reply)
        await asyncio.sleep(0)
    log.info(
        "state: loaded %d snapshots and %d batches in %.2f s; %d blocks known",
        len(before),
        entries,
        time.monotonic() - began,
        shared.index.blocks,
    )
    # After the replay, which is where a router that is new here is first heard of.
    shared.peers.expect(others)
    return end, start > (0, 0) or not others
