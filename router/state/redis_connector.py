"""Clients for the Redis that the setting `state` names: redis-py, as this project uses it.

Each task that talks to Redis has a client of its own with one connection. Such a client never
retries and never reconnects by itself: who uses it has to learn that the connection was lost, since
what was sent on it may be lost too. A cluster's client is the exception, for redis-py moves it from
node to node itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterError,
    ReadOnlyError,
    RedisClusterException,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from router.config.state_url import StateURL
from router.state.redis_client import Client

CONNECT_TIMEOUT_S = 1.0
_CLUSTER_ERRORS = (AskError, ClusterError, RedisClusterException)
"""What only a cluster's node answers. MovedError is an AskError."""


class RedisConnector:
    """Opens clients. The mutable state is what was found out about the servers so far."""

    def __init__(self, url: StateURL, password: str, ca: str, name: str) -> None:
        """name: what CLIENT LIST shows."""
        self._url = url
        self._next_server = 0
        self._is_cluster = False
        self._password = password or None
        self._sentinel_password: str | None = None
        self._tls: dict[str, Any] = {"ssl": True, "ssl_ca_certs": ca or None} if url.tls else {}
        self._options: dict[str, Any] = {
            **self._tls,
            "username": url.user or None,
            "password": self._password,
            "client_name": name,
            "retry": Retry(NoBackoff(), 0),
            # Every server speaks RESP 2, and nothing here needs RESP 3.
            "protocol": 2,
        }

    async def open(self, key: str, timeout_s: float) -> Client:
        """A client whose connection stands and whose server answers for `key`.

        timeout_s: the longest wait for a reply, more for a command that blocks. Raises one of
        `redis_client.errors`.
        """
        try:
            return await self._checked(key, timeout_s)
        except _CLUSTER_ERRORS:
            if self._url.service:
                raise
            # Now it is known to be a cluster, or, the other way round, no longer to be one.
            self._is_cluster = not self._is_cluster
            return await self._checked(key, timeout_s)
        except MasterNotFoundError:
            # Some Sentinels want the password, some refuse one: the next attempt is the other way.
            self._sentinel_password = None if self._sentinel_password else self._password
            raise

    async def _checked(self, key: str, timeout_s: float) -> Client:
        client = self._client(timeout_s)
        try:
            await client.exists(key)
            if self._url.service and (await client.execute_command("ROLE"))[0] != b"master":
                raise ReadOnlyError("Sentinel names a server that is not the primary yet")
        except BaseException:
            await client.aclose()
            if isinstance(client, RedisCluster):
                # Which leaves open what a client has that was not made to the end.
                await client.nodes_manager.aclose()
                await client.nodes_manager.aclose("startup_nodes")
            raise
        return client

    def _client(self, timeout_s: float) -> Client:
        url = self._url
        options = self._options | {"socket_timeout": timeout_s}
        if url.path:
            return Redis(
                unix_socket_path=url.path,
                db=url.database,
                redis_connect_func=_connect_once(),
                **options,
            )
        options["socket_connect_timeout"] = CONNECT_TIMEOUT_S
        if self._is_cluster:
            return RedisCluster(
                startup_nodes=[ClusterNode(host, port) for host, port in url.servers],
                require_full_coverage=False,
                **options,
            )
        options |= {"db": url.database, "redis_connect_func": _connect_once()}
        if url.service:
            sentinel = Sentinel(  # type: ignore[no-untyped-call]
                url.servers,
                sentinel_kwargs={
                    **self._tls,
                    "password": self._sentinel_password,
                    "socket_timeout": CONNECT_TIMEOUT_S,
                    "socket_connect_timeout": CONNECT_TIMEOUT_S,
                    "retry": options["retry"],
                },
            )
            primary: Redis = sentinel.master_for(url.service, **options)
            return primary
        host, port = url.servers[self._next_server % len(url.servers)]
        self._next_server += 1
        return Redis(host=host, port=port, **options)


def _connect_once() -> Callable[[AbstractConnection], Awaitable[None]]:
    """What redis-py calls at each connect: it lets the first pass."""
    connected = False

    async def on_connect(connection: AbstractConnection) -> None:
        nonlocal connected
        if connected:
            raise RedisConnectionError("the connection was lost")
        await connection.on_connect()
        connected = True

    return on_connect
