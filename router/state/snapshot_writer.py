"""Keeps Redis in order. Of all routers one, elected, writes the maps and trims the stream; each one
says every now and then who it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from typing import TYPE_CHECKING, Final

import msgspec

from router.state.cache_snapshots import Position, encode
from router.state.keys import position_text
from router.state.resp import Argument, Connection, Reply, ReplyError
from router.state.routers import RouterInfo, alive
from router.state.sync import Shared

if TYPE_CHECKING:
    from router.state.redis_transport import RedisCarrier

log = logging.getLogger(__name__)

ROUND: Final = 2.0
"""Seconds between two rounds."""
LEASE_MS: Final = 6000
"""After so long without a sign another router may become the keeper."""
EVERY: Final = 20.0
"""Seconds between two writings of what has changed: as much stream has to be replayed by who
starts."""
MUCH: Final = 8 << 20
"""Bytes heard after which the maps are written before that."""
EXPIRY: Final = 86_400
"""Seconds after which keys nobody writes are gone."""
STALE: Final = 30.0
"""Seconds after which a router that says nothing is taken off the list."""
WITHIN: Final = 3.0
SLICE: Final = 0.002


class Keeper:
    """The mutable state: which epoch this router knows, and what of the maps is up to date."""

    def __init__(self, carrier: RedisCarrier, shared: Shared) -> None:
        self._carrier = carrier
        self._shared = shared
        self._keys = carrier.keys
        self._epoch: Reply = None
        self._written: dict[str, tuple[float, int]] = {}
        self._written_at = -EVERY
        self._written_bytes = 0
        self._position: Position = (0, 0)
        """Where the stream began to matter at the writing before the last."""
        self._started = time.time()
        self._me = f"{shared.router:016x}"

    async def run(self, connection: Connection) -> None:
        """Rounds, for as long as the connection holds. Raises ReplyError, LostError."""
        while True:
            await self._round(connection)
            await asyncio.sleep(ROUND)

    async def _call(
        self, connection: Connection, commands: list[tuple[Argument, ...]]
    ) -> list[Reply]:
        replies = await connection.calls(commands, WITHIN)
        self._carrier.commands += len(commands)
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise reply
        return replies

    async def _round(self, connection: Connection) -> None:
        keys = self._keys
        info = msgspec.json.encode(self._info())
        replies = await self._call(
            connection,
            [
                ("SET", keys.epoch, secrets.token_hex(8), "NX", "EX", EXPIRY),
                ("GET", keys.epoch),
                ("SET", keys.keeper, self._me, "NX", "PX", LEASE_MS),
                ("GET", keys.keeper),
                ("HSET", keys.routers, self._me, info),
                ("EXPIRE", keys.facts, EXPIRY),
                ("EXPIRE", keys.epoch, EXPIRY),
                ("EXPIRE", keys.routers, EXPIRY),
            ],
        )
        epoch, keeper = replies[1], replies[3]
        if epoch != self._epoch:
            if self._epoch is not None:
                log.warning("state: Redis was emptied, filling it again")
            self._epoch = epoch
            self._written.clear()
            self._written_at = -EVERY
            self._position = (0, 0)
        if keeper != self._me.encode():
            self._written.clear()
            return
        await self._call(connection, [("PEXPIRE", keys.keeper, LEASE_MS)])
        heard = self._carrier.bytes_received
        now = time.monotonic()
        due = now - self._written_at >= EVERY or heard - self._written_bytes >= MUCH
        if due and self._carrier.up:
            await self.write(connection)
            self._written_at = now
            self._written_bytes = heard
            await self._sweep(connection)

    async def write(self, connection: Connection) -> None:
        """Write the maps of replicas that changed; then the stream before may go."""
        shared, keys = self._shared, self._keys
        position = self._carrier.last
        for slot, name in list(shared.names.items()):
            if shared.names.get(slot) != name:
                continue  # it left meanwhile
            room = shared.index.room(slot)
            mark = (room.order[-1].when if room.order else 0.0, room.blocks)
            if self._written.get(name) == mark:
                found = await self._call(connection, [("EXPIRE", keys.map(name), EXPIRY)])
                if found[0]:
                    continue
            blocks = room.blocks
            data = await self._encoded(slot, position)
            about = f"{blocks} {len(data)} {int(time.time() * 1000)}"
            await self._call(
                connection,
                [
                    ("SET", keys.map(name), data, "EX", EXPIRY),
                    ("HSET", keys.maps, name, about),
                    ("PEXPIRE", keys.keeper, LEASE_MS),
                ],
            )
            self._written[name] = mark
        commands: list[tuple[Argument, ...]] = [
            ("SET", keys.position, position_text(position), "EX", EXPIRY),
            ("EXPIRE", keys.maps, EXPIRY),
        ]
        if self._position > (0, 0):
            # One writing behind, for those who are loading the maps before these.
            commands.append(("XTRIM", keys.facts, "MINID", "~", position_text(self._position)))
        await self._call(connection, commands)
        self._position = position

    async def _encoded(self, slot: int, position: Position) -> bytes:
        shared = self._shared
        until = time.monotonic() + SLICE
        touches = shared.touches(slot)
        for data in encode(shared.key(slot), touches, position, time.monotonic(), time.time()):
            if data is not None:
                return data
            if time.monotonic() > until:
                await asyncio.sleep(0)
                until = time.monotonic() + SLICE
        raise AssertionError("encode ends with the map")

    async def _sweep(self, connection: Connection) -> None:
        """Take routers that are gone off the list, and replicas whose map expired."""
        keys = self._keys
        routers, maps = await self._call(
            connection, [("HGETALL", keys.routers), ("HKEYS", keys.maps)]
        )
        gone: list[tuple[Argument, ...]] = []
        if isinstance(routers, list):
            for router, info in zip(routers[::2], routers[1::2], strict=True):
                assert isinstance(router, bytes)
                assert isinstance(info, bytes)
                try:
                    old = not alive(msgspec.json.decode(info, type=RouterInfo), STALE)
                except msgspec.DecodeError:
                    old = True
                if old:
                    gone.append(("HDEL", keys.routers, router))
        if isinstance(maps, list):
            names = [name.decode() for name in maps if isinstance(name, bytes)]
            there = await self._call(connection, [("EXISTS", keys.map(name)) for name in names])
            gone += [
                ("HDEL", keys.maps, name) for name, is_there in zip(names, there, strict=True)
                if not is_there
            ]  # fmt: skip
        if gone:
            await self._call(connection, gone)

    def _info(self) -> RouterInfo:
        shared = self._shared
        return RouterInfo(
            socket.gethostname(),
            os.getpid(),
            time.time(),
            self._started,
            len(shared.names),
            shared.index.blocks,
            round(self._carrier.lag, 4),
            shared.outbox.in_flight,
            shared.peers.alive,
        )
