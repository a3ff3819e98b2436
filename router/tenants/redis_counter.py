"""Counting in Redis. Loads redis-py: not to be imported where there is no Redis."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec
from redis.exceptions import NoScriptError

from router.state.redis_client import Client
from router.state.redis_connector import RedisConnector
from router.tenants.counters import TIMEOUT_S, Call, Reply, Session, account_key
from router.tenants.limits_script import LIMITS_SCRIPT

_SHA: Final = hashlib.sha1(LIMITS_SCRIPT.encode(), usedforsecurity=False).hexdigest()

_encode = msgspec.json.Encoder().encode


class RedisCounter:
    """Counts in Redis."""

    name = "Redis"
    label = "redis"
    tick_s = 0.25

    def __init__(self, connector: RedisConnector, prefix: str) -> None:
        self._connector = connector
        self._prefix = prefix
        self._book = "{" + prefix + "}:limits"

    async def open(self) -> Session:
        """A connection, on which the script is known."""
        client = await self._connector.open(self._book, TIMEOUT_S)
        try:
            await client.script_load(LIMITS_SCRIPT)
        except BaseException:
            await client.aclose()
            raise
        return _RedisSession(client, self._book, self._prefix)


class _RedisSession:
    def __init__(self, client: Client, book: str, prefix: str) -> None:
        self._client = client
        self._book = book
        self._prefix = prefix

    async def call(self, names: Sequence[str], call: Call) -> Reply:
        """Have the script run."""
        keys = [self._book, *(account_key(self._prefix, name) for name in names)]
        argument = _encode(call)
        try:
            reply = await self._client.evalsha(_SHA, len(keys), *keys, argument)
        except NoScriptError:
            reply = await self._client.eval(LIMITS_SCRIPT, len(keys), *keys, argument)
        return Reply(*reply)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()
