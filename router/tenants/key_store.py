"""Keys in Redis: made, listed and revoked by `warmroute keys`, and followed by every router.

A hash holds a record for each key by its SHA-256, and a stream says what has changed. A router
reads the hash once and then waits for the stream, so that a key that was revoked is refused
everywhere within moments. While Redis is away the keys stay as they were heard last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from router.state.redis_client import Client, errors
from router.tenants.keys import KeyRecord
from router.tenants.registry import Registry
from router.tenants.tenant_file import MAX_KEYS

if TYPE_CHECKING:
    from router.state.redis_connector import RedisConnector

log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 3.0
_BLOCK_MS: Final = 1000
_RETRY_S: Final = 0.25
_LOG_LENGTH: Final = 10_000
_PAGE: Final = 1000
_START: Final = b"0-0"


class KeyNames:
    """Where the keys are in Redis. One hash tag: a cluster keeps them on one server."""

    def __init__(self, prefix: str) -> None:
        self.keys = "{" + prefix + "}:keys"
        """Hash: SHA-256 -> record, JSON."""
        self.log = "{" + prefix + "}:keys:log"
        """Stream of the SHA-256 of keys that have changed, field k."""


class KeyStore:
    """Changes the keys. For the command line."""

    def __init__(self, client: Client, prefix: str) -> None:
        self._client = client
        self._names = KeyNames(prefix)

    async def put(self, record: KeyRecord) -> None:
        """Have a key from now on. Raises ValueError when there are too many."""
        if await self._client.hlen(self._names.keys) >= MAX_KEYS:
            raise ValueError(f"there are {MAX_KEYS} keys already; revoke some")
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.hset(self._names.keys, record.sha256, msgspec.json.encode(record))
            pipe.xadd(self._names.log, {b"k": record.sha256}, maxlen=_LOG_LENGTH, approximate=True)
            await pipe.execute()

    async def revoke(self, record: KeyRecord) -> None:
        """Have a key no more."""
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.hdel(self._names.keys, record.sha256)
            pipe.xadd(self._names.log, {b"k": record.sha256}, maxlen=_LOG_LENGTH, approximate=True)
            await pipe.execute()

    async def all(self) -> list[KeyRecord]:
        """Every key, the oldest first."""
        return sorted(await read_all(self._client, self._names), key=lambda each: each.created)


async def read_all(client: Client, names: KeyNames) -> list[KeyRecord]:
    """Every record that can be read; page by page, for there may be many."""
    found: dict[str, KeyRecord] = {}
    cursor = 0
    while True:
        cursor, page = await client.hscan(names.keys, cursor, count=_PAGE)
        for record in _decoded(page.values()):
            found[record.sha256] = record
        if not cursor or len(found) > MAX_KEYS:
            return list(found.values())


def _decoded(values: Iterable[bytes]) -> list[KeyRecord]:
    records = []
    for value in values:
        try:
            record = msgspec.json.decode(value, type=KeyRecord)
            bytes.fromhex(record.sha256)
        except (msgspec.DecodeError, ValueError):
            log.warning("tenants: a key's record in Redis cannot be read; it is left out")
            continue
        records.append(record)
    return records


class KeyWatcher:
    """Keeps a registry in step with the keys in Redis."""

    def __init__(self, connector: RedisConnector, prefix: str, registry: Registry) -> None:
        self._connector = connector
        self._names = KeyNames(prefix)
        self._registry = registry
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        """redis-py may lose a cancellation, in an error that closing a connection has."""
        self.loaded = asyncio.Event()
        """The keys were read once."""
        self.problem = ""
        """Why changes are not heard just now; empty while they are."""

    def start(self) -> None:
        """Begin to follow."""
        self._task = asyncio.create_task(self._follow_forever(), name="tenants' keys")

    async def stop(self) -> None:
        """Follow no more."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _follow_forever(self) -> None:
        while not self._stopping:
            try:
                await self._follow()
            except errors() as error:
                if not self.problem:
                    log.warning("tenants: keys that are made or revoked are not heard: %s", error)
                self.problem = f"changes of keys are not heard: {error}"
            await asyncio.sleep(_RETRY_S)

    async def _follow(self) -> None:
        client = await self._connector.open(self._names.keys, _TIMEOUT_S)
        try:
            last = await client.xrevrange(self._names.log, count=1)
            position = last[0][0] if last else _START
            records = await read_all(client, self._names)
            registry = self._registry
            if records or last or not registry.redis_keys:
                registry.adopt_keys(records)
            else:
                log.error(
                    "tenants: Redis has lost all keys; those known before stay valid until a "
                    "restart. Have Redis keep its data (appendonly yes), and make them anew"
                )
            if self.problem:
                log.info("tenants: changes of keys are heard again")
            self.problem = ""
            self.loaded.set()
            while not self._stopping:
                position = await self._changes(client, position)
        finally:
            await client.aclose()

    async def _changes(self, client: Client, position: bytes) -> bytes:
        """Wait for changes and take them up; where the stream was read to."""
        reply = await client.xread({self._names.log: position}, count=_PAGE, block=_BLOCK_MS)
        if not reply:
            return position
        entries = reply[0][1]
        digests = dict.fromkeys(fields[b"k"].decode() for _, fields in entries if b"k" in fields)
        if digests:
            values = await client.hmget(self._names.keys, list(digests))
            for digest, value in zip(digests, values, strict=True):
                records = _decoded([value]) if value is not None else []
                if records:
                    self._registry.put_key(records[0])
                else:
                    self._registry.drop_key(digest)
        last: bytes = entries[-1][0]
        return last
