"""Limits that the workers of one host count together: a worker's line to the counter of its
supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from router.tenants.counters import TIMEOUT_S, Call, Reply
from router.workers.frames import LIMITS, Frames


class LimitsCall(msgspec.Struct, array_like=True):
    """What a worker sends."""

    names: list[str]
    call: Call


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Reply).decode


class SupervisorCounter:
    """Counts in the supervisor. Its own session: there is one line, and one call at a time."""

    name = "the supervisor"
    label = "supervisor"
    tick_s = 0.05

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._number = 0
        """Of the last call: an answer that comes too late is not taken for the next one's."""
        self._waiting: asyncio.Future[bytes] | None = None

    async def open(self) -> SupervisorCounter:
        """The line is there from the beginning."""
        return self

    async def call(self, names: Sequence[str], call: Call) -> Reply:
        """Ask the supervisor. Raises OSError when it does not answer."""
        self._number = (self._number + 1) % (1 << 32)
        self._waiting = asyncio.get_running_loop().create_future()
        if not self._frames.tell(LIMITS, _encode(LimitsCall(list(names), call)), self._number):
            raise ConnectionError("the supervisor does not read")
        async with asyncio.timeout(TIMEOUT_S):
            return _decode(await self._waiting)

    def heard(self, number: int, data: bytes) -> None:
        """The supervisor's answer."""
        if number == self._number and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(data)

    async def close(self) -> None:
        """The line stays."""
