"""The passing of time on the data path: one regular look at everything open, instead of a timer for
each."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from router.http.gateway import Gateway

if TYPE_CHECKING:
    from router.http.exchange import Exchange
    from router.http.server import ClientConnection

TICK = 0.5
"""Seconds between two looks; timeouts are late by up to two."""
# Looks after which the rest of a tunnel whose client has left is not waited for.
_FLUSH = 10


class Sweep:
    """Counts the looks at which a connection had not moved, and ends those over their limit."""

    def __init__(self, gateway: Gateway) -> None:
        settings = gateway.settings
        self._gateway = gateway
        self._head = _ticks(settings.head_timeout)
        self._idle = _ticks(settings.idle_timeout)
        self._first = _ticks(settings.first_byte_timeout)
        self._silence = _ticks(settings.chunk_timeout)
        self._pool_idle = settings.replica_idle_timeout

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await asyncio.sleep(TICK)
            self.look(monotonic())

    def look(self, now: float) -> None:
        """One look at everything."""
        gateway = self._gateway
        streams = 0
        for exchange in list(gateway.exchanges):
            relay = exchange.relay
            if relay is not None:
                if exchange.prompt is not None and exchange.prompt.stream:
                    streams += 1
                if relay.active:
                    relay.active = False
                    exchange.idle_ticks = 0
                    continue
            self._look_at_exchange(exchange)
        gateway.live.streams = streams
        for client in list(gateway.clients):
            self._look_at_client(client)
        before = now - self._pool_idle
        for pool in gateway.pools:
            pool.sweep(before)

    def _look_at_exchange(self, exchange: Exchange) -> None:
        upstream = exchange.upstream
        if upstream is None:
            # It waits for a connection, which has its own timeout.
            return
        exchange.idle_ticks += 1
        if exchange.tunnel:
            if not exchange.client.transport.is_closing():
                exchange.idle_ticks = 0
            elif exchange.idle_ticks > _FLUSH:
                upstream.transport.abort()
        elif exchange.paused:
            unsent = exchange.client.transport.get_write_buffer_size()
            if unsent < exchange.unsent:
                exchange.idle_ticks = 0
            exchange.unsent = unsent
            if exchange.idle_ticks > self._silence:
                exchange.client_stalled()
        elif exchange.idle_ticks > (self._first if exchange.relay is None else self._silence):
            exchange.timed_out()

    def _look_at_client(self, client: ClientConnection) -> None:
        if client.exchange is not None:
            client.idle_ticks = 0
        else:
            client.idle_ticks += 1
        if client.in_head:
            client.request_ticks += 1
            if client.request_ticks > self._head:
                client.refuse_slow()
        elif client.idle_ticks > self._idle:
            if client.transport.is_closing():
                # It does not take what it is still owed.
                client.transport.abort()
            elif client.in_request:
                client.refuse_slow()
            else:
                client.idle_ticks = 0
                client.close()


def _ticks(seconds: float) -> int:
    return max(1, round(seconds / TICK))
