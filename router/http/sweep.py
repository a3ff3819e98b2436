"""The passing of time on the data path: one regular look at everything open, instead of a timer for each."""

from __future__ import annotations

import asyncio
from time import monotonic

from router.http.gateway import Gateway

TICK = 0.5
"""Seconds between two looks; timeouts are late by up to two."""


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
        for exchange in list(gateway.exchanges):
            if exchange.active:
                exchange.active = False
                exchange.idle_ticks = 0
                continue
            exchange.idle_ticks += 1
            if exchange.tunnel or exchange.upstream is None:
                continue
            if exchange.paused:
                if exchange.idle_ticks > self._silence:
                    exchange.client_stalled()
            elif exchange.idle_ticks > (self._silence if exchange.head_sent else self._first):
                exchange.timed_out()
        for client in list(gateway.clients):
            client.idle_ticks += 1
            if client.in_head:
                client.request_ticks += 1
                if client.request_ticks > self._head:
                    client.refuse_slow()
            elif client.idle_ticks > self._idle and client.exchange is None:
                if client.in_request:
                    client.refuse_slow()
                else:
                    client.close()
        before = now - self._pool_idle
        for pool in gateway.pools:
            pool.sweep(before)


def _ticks(seconds: float) -> int:
    return max(1, round(seconds / TICK))
