"""Waiting for events instead of for time, so that a busy machine makes no prediction wrong."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import httpx
import zmq
import zmq.asyncio

from bench.gateways import Gateway
from router.kv_events.sources import Source, parse_sources

PATIENT = (
    *("--health-timeout", "60s", "--connect-timeout", "60s"),
    # How long a prompt may take to tokenise is a matter of speed.
    *("--exact-budget", "60s"),
)
"""Flags of the gateway: what is slow here is not broken."""
WAIT_SECONDS = 240.0
SILENT_SECONDS = 10
"""A replay from which nothing came for so long is asked for again, from where it was."""
_END = b"\xff" * 8


class CaughtUp:
    """Waits until the gateway has applied what an engine has told so far.

    An engine puts an answer's last events in its publisher's queue before it sends the end of that
    answer; the publisher sends them later, and numbers them then. Between two requests for replay it
    looks once for a batch to send. So when two replays after each other end at the same number, the
    queue was empty in between, and everything up to the answer has a number. What is left is to see
    the gateway beyond that number.
    """

    def __init__(self, started: Gateway, urls: list[str]) -> None:
        self._admin = started.admin
        self._urls = {urlsplit(url).netloc: url for url in urls}
        self._sources: dict[str, list[Source]] = {}
        self._last: dict[str, int] = {}
        self._context: zmq.asyncio.Context = zmq.asyncio.Context()
        self._client = httpx.AsyncClient(trust_env=False, timeout=WAIT_SECONDS)

    async def __aenter__(self) -> CaughtUp:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()
        self._context.destroy(linger=0)

    async def __call__(self, replica: str) -> None:
        """replica: host and port. Raises TimeoutError."""
        async with asyncio.timeout(WAIT_SECONDS):
            for rank, source in enumerate(await self._sources_of(replica)):
                last = await self._published(source)
                while not await self._applied(replica, rank, last):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    async def _sources_of(self, replica: str) -> list[Source]:
        found = self._sources.get(replica)
        if found is None:
            url = self._urls[replica]
            body = (await self._client.get(url + "/kv_event_sources")).content
            found = self._sources[replica] = parse_sources(body, urlsplit(url).hostname or "")
        return found

    async def _applied(self, replica: str, rank: int, last: int) -> bool:
        told = (await self._client.get(self._admin + "/replicas")).json()
        ranks = next(one["exact_next"] for one in told if one["name"] == replica)
        # Null where exact mode is off: then the engine alone is waited for.
        return ranks is None or (rank < len(ranks) and ranks[rank] > last)

    async def _published(self, source: Source) -> int:
        """The number of the last batch, once there is none that waits for one; -1 when none ever
        was."""
        before = None
        while True:
            known = self._last.get(source.replay, 0)
            now = await self._replay(source, known)
            if now < known:  # another engine since then
                now = await self._replay(source, 0)
            self._last[source.replay] = max(now, 0)
            if now == before:
                return now
            before = now

    async def _replay(self, source: Source, first: int) -> int:
        """The number of the last batch a replay from `first` on has; -1 when it has none.

        vLLM's ROUTER drops what does not fit in its queue of 1,000, a replay's end among it.
        """
        last = -1
        while True:
            with self._context.socket(zmq.DEALER) as socket:
                socket.linger = 0
                socket.connect(source.replay)
                await socket.send_multipart((b"", max(first, last).to_bytes(8, "big")))
                while await socket.poll(SILENT_SECONDS * 1e3):
                    *_, number, payload = await socket.recv_multipart()
                    if _END in (number, payload):
                        return last
                    last = int.from_bytes(number, "big")
