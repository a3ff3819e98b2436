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
from typing import TYPE_CHECKING, Any, Final

import msgspec

from router.state.cache_snapshots import Position, encode
from router.state.keys import position_text
from router.state.redis_client import Client
from router.state.routers import RouterInfo, alive
from router.state.sync import StateSync

if TYPE_CHECKING:
    from router.state.redis_transport import RedisTransport

log = logging.getLogger(__name__)

ROUND_INTERVAL_S: Final = 2.0
"""Seconds between two rounds."""
LEASE_MS: Final = 6000
"""After so long without a sign another router may become the keeper."""
WRITE_INTERVAL_S: Final = 20.0
"""Seconds between two writings of what has changed: as much stream has to be replayed by who
starts."""
WRITE_AFTER_BYTES: Final = 8 << 20
"""Bytes heard after which the maps are written before that."""
KEY_EXPIRY_S: Final = 86_400
"""Seconds after which keys nobody writes are gone."""
ROUTER_STALE_S: Final = 30.0
"""Seconds after which a router that says nothing is taken off the list."""
WORK_SLICE_S: Final = 0.002


class SnapshotWriter:
    """The mutable state: which epoch this router knows, and what of the maps is up to date."""

    def __init__(self, transport: RedisTransport, shared: StateSync) -> None:
        self._transport = transport
        self._sync = shared
        self._keys = transport.keys
        self._epoch: bytes | None = None
        self._written: dict[str, tuple[float, int]] = {}
        self._written_at = -WRITE_INTERVAL_S
        self._written_bytes = 0
        self._position: Position = (0, 0)
        """Where the stream began to matter at the writing before the last."""
        self._started = time.time()
        self._me = f"{shared.router:016x}"

    async def run(self, client: Client) -> None:
        """Rounds, for as long as the connection holds. Raises one of redis_client.errors."""
        while True:
            await self._round(client)
            await asyncio.sleep(ROUND_INTERVAL_S)

    async def _round(self, client: Client) -> None:
        keys = self._keys
        pipeline = client.pipeline(transaction=False)
        pipeline.set(keys.epoch, secrets.token_hex(8), nx=True, ex=KEY_EXPIRY_S)
        pipeline.get(keys.epoch)
        pipeline.set(keys.keeper, self._me, nx=True, px=LEASE_MS)
        pipeline.get(keys.keeper)
        pipeline.hset(keys.routers, self._me, msgspec.json.encode(self._info()))
        pipeline.expire(keys.facts, KEY_EXPIRY_S)
        pipeline.expire(keys.epoch, KEY_EXPIRY_S)
        pipeline.expire(keys.routers, KEY_EXPIRY_S)
        replies = await self._executed(pipeline)
        epoch, keeper = replies[1], replies[3]
        if epoch != self._epoch:
            if self._epoch is not None:
                log.warning("state: Redis was emptied; writing all snapshots again")
            self._epoch = epoch
            self._written.clear()
            self._written_at = -WRITE_INTERVAL_S
            self._position = (0, 0)
        if keeper != self._me.encode():
            self._written.clear()
            return
        await client.pexpire(keys.keeper, LEASE_MS)
        heard = self._transport.bytes_received
        now = time.monotonic()
        due = (
            now - self._written_at >= WRITE_INTERVAL_S
            or heard - self._written_bytes >= WRITE_AFTER_BYTES
        )
        if due and self._transport.up:
            await self.write(client)
            self._written_at = now
            self._written_bytes = heard
            await self._sweep(client)

    async def _executed(self, pipeline: Any) -> list[Any]:
        """Send what a pipeline has gathered. redis-py has one class of them for a server and
        another one for a cluster."""
        self._transport.commands += len(pipeline)
        replies: list[Any] = await pipeline.execute()
        return replies

    async def write(self, client: Client) -> None:
        """Write the maps of replicas that changed; then the stream before may go."""
        shared, keys = self._sync, self._keys
        position = self._transport.last
        for slot, name in list(shared.names.items()):
            if shared.names.get(slot) != name:
                continue  # it left meanwhile
            room = shared.index.room(slot)
            mark = (room.order[-1].when if room.order else 0.0, room.blocks)
            if self._written.get(name) == mark and await client.expire(
                keys.map(name), KEY_EXPIRY_S
            ):
                continue
            blocks = room.blocks
            data = await self._encoded(slot, position)
            about = f"{blocks} {len(data)} {int(time.time() * 1000)}"
            pipeline = client.pipeline(transaction=False)
            pipeline.set(keys.map(name), data, ex=KEY_EXPIRY_S)
            pipeline.hset(keys.maps, name, about)
            pipeline.pexpire(keys.keeper, LEASE_MS)
            await self._executed(pipeline)
            self._written[name] = mark
        pipeline = client.pipeline(transaction=False)
        pipeline.set(keys.position, position_text(position), ex=KEY_EXPIRY_S)
        pipeline.expire(keys.maps, KEY_EXPIRY_S)
        if self._position > (0, 0):
            # One writing behind, for those who are loading the maps before these.
            pipeline.xtrim(keys.facts, minid=position_text(self._position))
        await self._executed(pipeline)
        self._position = position

    async def _encoded(self, slot: int, position: Position) -> bytes:
        shared = self._sync
        until = time.monotonic() + WORK_SLICE_S
        touches = shared.touches(slot)
        for data in encode(shared.key(slot), touches, position, time.monotonic(), time.time()):
            if data is not None:
                return data
            if time.monotonic() > until:
                await asyncio.sleep(0)
                until = time.monotonic() + WORK_SLICE_S
        raise AssertionError("encode ends with the map")

    async def _sweep(self, client: Client) -> None:
        """Take routers that are gone off the list, and replicas whose map expired."""
        keys = self._keys
        for router, info in (await client.hgetall(keys.routers)).items():
            try:
                old = not alive(msgspec.json.decode(info, type=RouterInfo), ROUTER_STALE_S)
            except msgspec.DecodeError:
                old = True
            if old:
                await client.hdel(keys.routers, router)
        for name in await client.hkeys(keys.maps):
            if not await client.exists(keys.map(name.decode())):
                await client.hdel(keys.maps, name)

    def _info(self) -> RouterInfo:
        shared = self._sync
        return RouterInfo(
            socket.gethostname(),
            os.getpid(),
            time.time(),
            self._started,
            len(shared.names),
            shared.index.blocks,
            round(self._transport.lag, 4),
            shared.outbox.in_flight,
            shared.peers.alive,
        )
