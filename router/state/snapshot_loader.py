"""Loads what the others know: the maps, then the stream from where they were made."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from router.state.cache_snapshots import Position, decode
from router.state.codec import BadBatchError
from router.state.keys import Keys, position, position_text
from router.state.resp import Connection, ReplyError
from router.state.routers import alive, read_routers
from router.state.sync import Shared

log = logging.getLogger(__name__)

WITHIN: Final = 5.0
"""Seconds for an answer: maps are large."""
ALIVE: Final = 5.0
"""Seconds since a router's last word within which it is waited for."""
MAPS: Final = 8
"""Maps asked for at once."""
ENTRIES: Final = 500
"""Entries of the stream asked for at once."""


async def load(connection: Connection, keys: Keys, shared: Shared) -> tuple[Position, bool]:
    """Returns the place in the stream to listen from, and whether there was a map to load. Raises
    ReplyError, LostError.

    The end of the stream is read before anything else, and the place to begin before the maps:
    maps may be newer than that, never older, and what is told twice does no harm.
    """
    began = time.monotonic()
    replies = await connection.calls(
        [
            ("GET", keys.position),
            ("XREVRANGE", keys.facts, "+", "-", "COUNT", 1),
            ("HGETALL", keys.routers),
        ],
        WITHIN,
    )
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise reply
    start = position(replies[0])
    newest = replies[1]
    end: Position = (0, 0)
    if isinstance(newest, list) and newest and isinstance(newest[0], list):
        end = position(newest[0][0])
    others = {
        router
        for router, info in read_routers(replies[2]).items()
        if router != shared.router and alive(info, ALIVE)
    }
    before: dict[int, Position] = {}
    names = list(shared.names.items())
    for first in range(0, len(names), MAPS):
        some = names[first : first + MAPS]
        got = await connection.calls([("GET", keys.map(name)) for _, name in some], WITHIN)
        for (slot, name), data in zip(some, got, strict=True):
            if isinstance(data, ReplyError):
                raise data
            if not isinstance(data, bytes) or shared.names.get(slot) != name:
                continue
            try:
                found = decode(data, time.time())
            except BadBatchError as error:
                log.warning("state: the map of %s was skipped: %s", name, error)
                continue
            before[slot] = found.position
            shared.adopt(slot, found)
            await asyncio.sleep(0)
    entries = 0
    at = start
    while at < end:
        reply = await connection.call(
            "XRANGE", keys.facts, "(" + position_text(at), position_text(end), "COUNT", ENTRIES,
            within=WITHIN,
        )  # fmt: skip
        if not isinstance(reply, list) or not reply:
            break
        for entry in reply:
            assert isinstance(entry, list)
            at = position(entry[0])
            fields = entry[1]
            if isinstance(fields, list) and len(fields) > 1 and isinstance(fields[1], bytes):
                shared.peers.replay(fields[1], before, at)
        entries += len(reply)
        await asyncio.sleep(0)
    log.info(
        "state: loaded %d maps and %d batches in %.2f s, %d blocks known",
        len(before),
        entries,
        time.monotonic() - began,
        shared.index.blocks,
    )
    # After the replay, which is where a router that is new here is first heard of.
    shared.peers.expect(others)
    return end, start > (0, 0) or not others
