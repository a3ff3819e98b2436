"""One connection to Redis: commands out, replies in. RESP2, as every Redis and Valkey speaks it.

Written here rather than taken from a client library, since a router sends and reads a batch some
fifty times a second: a command took 28 us of CPU this way, 106 us with redis-py's connections
(bench/state.py, `client`), and what a request costs is mostly that.

Protocol: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeAlias, cast

Reply: TypeAlias = "bytes | int | ReplyError | list[Reply] | None"
Argument: TypeAlias = "bytes | str | int"


class ReplyError(Exception):
    """Redis answered with an error. `code` is its first word: NOAUTH, OOM, MOVED, ..."""

    @property
    def code(self) -> str:
        """The first word."""
        return str(self).partition(" ")[0]


class LostError(ConnectionError):
    """The connection is gone, or no answer came in time."""


def packed(command: Sequence[Argument]) -> bytes:
    """A command as an array of bulk strings."""
    pieces = [b"*%d\r\n" % len(command)]
    for argument in command:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        pieces.append(b"$%d\r\n" % len(data))
        pieces.append(data)
        pieces.append(b"\r\n")
    return b"".join(pieces)


class _IncompleteError(Exception):
    """More bytes are needed: at least up to `need`."""

    def __init__(self, need: int) -> None:
        self.need = need


class Connection(asyncio.Protocol):
    """Replies come in the order of the commands. Used by one task at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._need = 0
        self._waiting: asyncio.Future[list[Reply]] | None = None
        self._expected = 0
        self._replies: list[Reply] = []
        self._lost: Exception | None = None
        self._transport: asyncio.Transport | None = None
        self.received = 0
        """Bytes."""
        self.sent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(LostError(f"connection lost: {exc or 'closed by Redis'}"))

    def close(self) -> None:
        """Close at once; who waits for a reply gets LostError."""
        if self._transport is not None:
            self._transport.abort()
        self._end(LostError("closed"))

    @property
    def closed(self) -> bool:
        """Whether it can be used no more."""
        return self._lost is not None

    def _end(self, error: Exception) -> None:
        if self._lost is None:
            self._lost = error
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(self._lost)

    async def call(self, *command: Argument, within: float = 1.0) -> Reply:
        """One command. Raises ReplyError, LostError."""
        reply = (await self.calls([command], within))[0]
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    async def calls(
        self, commands: Sequence[Sequence[Argument]], within: float = 1.0
    ) -> list[Reply]:
        """Several at once; an error reply is in the list. Raises LostError, also when they take
        longer than `within` seconds: replies that come later would be taken for others', so the
        connection is closed.
        """
        if self._lost is not None:
            raise LostError(str(self._lost))
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[list[Reply]] = loop.create_future()
        self._waiting = waiting
        self._expected = len(commands)
        self._replies = []
        data = b"".join([packed(command) for command in commands])
        self.sent += len(data)
        self._transport.write(data)
        timer = loop.call_later(within, self._late, within)
        try:
            return await waiting
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            timer.cancel()

    def _late(self, within: float) -> None:
        self._end(LostError(f"no answer within {within:g} s"))
        self.close()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        self.received += len(data)
        if len(buffer) < self._need:
            return
        at = 0
        try:
            while at < len(buffer):
                reply, at = _parse(buffer, at)
                self._replies.append(reply)
            self._need = 0
        except _IncompleteError as more:
            self._need = more.need - at
        except (ValueError, IndexError) as error:
            self._end(LostError(f"not RESP: {error}"))
            self.close()
            return
        if at:
            del buffer[:at]
        waiting = self._waiting
        if waiting is not None and len(self._replies) >= self._expected and not waiting.done():
            self._waiting = None
            waiting.set_result(self._replies)


def _parse(buffer: bytearray, at: int) -> tuple[Reply, int]:
    """A reply and where the next begins. Raises _IncompleteError, ValueError."""
    end = buffer.find(b"\r\n", at)
    if end < 0:
        raise _IncompleteError(len(buffer) + 1)
    kind = buffer[at]
    line = buffer[at + 1 : end]
    at = end + 2
    if kind == 0x24:  # $
        size = int(line)
        if size < 0:
            return None, at
        end = at + size
        if len(buffer) < end + 2:
            raise _IncompleteError(end + 2)
        return bytes(buffer[at:end]), end + 2
    if kind == 0x2A:  # *
        count = int(line)
        if count < 0:
            return None, at
        items: list[Reply] = []
        for _ in range(count):
            item, at = _parse(buffer, at)
            items.append(item)
        return items, at
    if kind == 0x3A:  # :
        return int(line), at
    if kind == 0x2B:  # +
        return bytes(line), at
    if kind == 0x2D:  # -
        return ReplyError(line.decode("utf-8", "replace")), at
    raise ValueError(f"a reply cannot begin with {bytes([kind])!r}")
