"""Finds the Redis that is in charge, and opens connections to it.

A cluster needs nothing of its own: all keys have one hash tag, so they are in one slot, and who is
asked and does not have it answers where it is (MOVED). Sentinels are asked who the primary is.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Sequence

from router.state.address import StateAddress
from router.state.resp import Argument, Connection, LostError, Reply, ReplyError

log = logging.getLogger(__name__)

CONNECT = 1.0
"""Seconds to connect, and for each answer until the connection is of use."""
ELSEWHERE = frozenset({"MOVED", "ASK", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "LOADING"})
"""Errors after which another server is to be asked, or the same a little later."""


class Link:
    """Opens connections. The mutable state is where the primary was found last."""

    def __init__(self, address: StateAddress, password: str, ca: str, name: str) -> None:
        """name: what CLIENT LIST shows. Raises OSError, ssl.SSLError for a CA that does not
        load."""
        self._address = address
        self._password = password
        self._name = name
        self._tls = ssl.create_default_context(cafile=ca or None) if address.tls else None
        self._moved: tuple[str, int] | None = None
        self._next = 0

    async def open(self) -> Connection:
        """A connection to the primary. Raises LostError, ReplyError, OSError."""
        address = self._address
        if address.path:
            loop = asyncio.get_running_loop()
            async with _in_time():
                _, connection = await loop.create_unix_connection(Connection, address.path)
            return await self._greeted(connection)
        if self._moved is not None:
            try:
                return await self._greeted(await self._connect(self._moved))
            except (ReplyError, OSError):
                self._moved = None
                raise
        if address.service:
            return await self._greeted(await self._connect(await self._primary()), primary=True)
        return await self._greeted(await self._connect(self._turn()))

    def refused(self, error: ReplyError) -> bool:
        """Whether an error means that the connection is to the wrong server: open another one."""
        if error.code not in ELSEWHERE:
            return False
        self._moved = None
        if error.code in ("MOVED", "ASK"):
            host, _, port = str(error).rpartition(" ")[2].rpartition(":")
            if host and port.isdigit():
                self._moved = (host.strip("[]"), int(port))
        return True

    def _turn(self) -> tuple[str, int]:
        servers = self._address.servers
        self._next += 1
        return servers[(self._next - 1) % len(servers)]

    async def _connect(self, server: tuple[str, int]) -> Connection:
        loop = asyncio.get_running_loop()
        host, port = server
        async with _in_time():
            _, connection = await loop.create_connection(Connection, host, port, ssl=self._tls)
        return connection

    async def _greeted(self, connection: Connection, *, primary: bool = False) -> Connection:
        """Log in, choose the database. Raises like open."""
        address = self._address
        commands: list[Sequence[Argument]] = []
        if address.user:
            commands.append(("AUTH", address.user, self._password))
        elif self._password:
            commands.append(("AUTH", self._password))
        if address.database:
            commands.append(("SELECT", address.database))
        if primary:
            commands.append(("ROLE",))
        commands.append(("PING",))
        try:
            replies = await connection.calls(commands, CONNECT)
            for reply in replies:
                if isinstance(reply, ReplyError):
                    raise reply
            if primary and isinstance(replies[-2], list) and replies[-2][0] != b"master":
                raise LostError("Sentinel named a server that is not the primary yet")
            # For CLIENT LIST only: an ACL may forbid it.
            await connection.calls([("CLIENT", "SETNAME", self._name)], CONNECT)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _primary(self) -> tuple[str, int]:
        """Ask the Sentinels in turn. Raises LostError when none knows."""
        reasons = []
        for _ in self._address.servers:
            server = self._turn()
            connection = None
            try:
                connection = await self._connect(server)
                found = await self._ask(connection)
            except (ReplyError, OSError) as error:
                reasons.append(f"{server[0]}:{server[1]}: {error}")
                continue
            finally:
                if connection is not None:
                    connection.close()
            if isinstance(found, list) and len(found) == 2:
                host, port = found
                if isinstance(host, bytes) and isinstance(port, bytes):
                    return host.decode(), int(port)
            reasons.append(f"{server[0]}:{server[1]} knows no {self._address.service!r}")
        raise LostError(f"no Sentinel names the primary: {'; '.join(reasons)}")

    async def _ask(self, sentinel: Connection) -> Reply:
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service)
        try:
            return await sentinel.call(*question, within=CONNECT)
        except ReplyError as error:
            if error.code != "NOAUTH" or not self._password:
                raise
        await sentinel.call("AUTH", self._password, within=CONNECT)
        return await sentinel.call(*question, within=CONNECT)


class _in_time:  # noqa: N801  (used as a function)
    """asyncio.timeout that raises LostError."""

    async def __aenter__(self) -> None:
        self._timeout = asyncio.timeout(CONNECT)
        await self._timeout.__aenter__()

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self._timeout.__aexit__(*exc)  # type: ignore[arg-type]
        except TimeoutError:
            raise LostError(f"no connection within {CONNECT:g} s") from None
