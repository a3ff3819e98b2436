"""The passing of time on the data path: one regular look at everything open, instead of a timer for
each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from time import monotonic

from router.http.client_connection import ClientConnection
from router.http.exchange import Exchange
from router.http.gateway import Gateway
from router.http.state import RELAYING, TUNNEL

log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 0.5
"""Seconds between two looks; timeouts are late by up to two."""
# Looks after which a silent replica is given up whose health has been bad for as long.
_AWAY_TICKS = 120
# Looks after which a silent replica is given up though it says that it is at work: half an hour.
_LONGEST_TICKS = 3600
# Looks after which a replica is asked again without the KV blocks that it was to fetch: two
# minutes. An engine whose transfer hangs is well, and at work on everything else.
_FETCH_TICKS = 240
# Looks after which a client that takes nothing is given up: two minutes.
_STALLED_TICKS = 240


class TimeoutSweep:
    """Counts the looks at which a connection had not moved, and ends those over their limit."""

    def __init__(self, gateway: Gateway, clients: Collection[ClientConnection]) -> None:
        settings = gateway.settings
        self._gateway = gateway
        self._clients = clients
        self._head = _ticks(settings.head_timeout)
        self._idle = _ticks(settings.idle_timeout)
        window = min(settings.head_timeout, settings.idle_timeout)
        self._body = _ticks(window)
        self._body_least = int(settings.body_rate * window)
        self._tunnel_idle = _ticks(settings.tunnel_idle_timeout)
        self._first = _ticks(settings.first_byte_timeout)
        self._silence = _ticks(settings.chunk_timeout)
        self._stalled = min(self._silence, _STALLED_TICKS)
        self._longest = max(self._first, self._silence, _LONGEST_TICKS)
        self._pool_idle = settings.replica_idle_timeout

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            now = monotonic()
            for look in (self.check, self._gateway.queue.tick):
                try:
                    look(now)
                except Exception:  # without further looks nothing would time out any more
                    log.exception("a look at what waits has failed; the next one follows")

    def check(self, now: float) -> None:
        """One look at everything."""
        gateway = self._gateway
        streams = 0
        for client in list(self._clients):
            exchange = client.exchange
            if exchange is not None:
                streams += self._look_at_exchange(exchange)
            self._look_at_client(client)
        gateway.live.streams = streams
        before = now - self._pool_idle
        for pool in gateway.pools:
            pool.sweep(before)
        for pool in gateway.overflow_pools.values():
            pool.sweep(before)

    def _look_at_exchange(self, exchange: Exchange) -> bool:
        """Whether it is a stream that is being answered."""
        relay = exchange.relay
        if relay is None:
            self._look_at_idle(exchange)
            return False
        streams = exchange.prompt is not None and exchange.prompt.stream
        if relay.active:
            relay.active = False
            exchange.idle_ticks = 0
        else:
            self._look_at_idle(exchange)
        return streams

    def _look_at_idle(self, exchange: Exchange) -> None:
        upstream = exchange.upstream
        if upstream is None:
            # It waits for a connection, which has its own timeout.
            return
        exchange.idle_ticks += 1
        if exchange.state is TUNNEL:
            if exchange.idle_ticks > self._tunnel_idle:
                # Ends the tunnel; what the client has not taken by now it is not owed.
                exchange.client.transport.abort()
                upstream.transport.abort()
        elif exchange.paused:
            unsent = exchange.client.transport.get_write_buffer_size()
            if unsent < exchange.unsent:
                exchange.idle_ticks = 0
            exchange.unsent = unsent
            if exchange.idle_ticks > self._stalled:
                exchange.client_stalled()
        elif self._silent_for_too_long(exchange):
            exchange.timed_out()

    def _silent_for_too_long(self, exchange: Exchange) -> bool:
        """Slow is not dead: whether a replica is, its health and its engine's metrics tell."""
        placement, fleet = exchange.placement, self._gateway.fleet
        ticks = exchange.idle_ticks
        late = ticks > (self._silence if exchange.state is RELAYING else self._first)
        if exchange.spill is not None:
            return late  # nobody watches a target's health
        assert placement is not None
        if ticks > _FETCH_TICKS and exchange.leg is not None and exchange.leg.fetching:
            return True
        if late:
            return ticks > self._longest or not fleet.works(placement.slot)
        return ticks > _AWAY_TICKS and fleet.away(placement.slot) > _AWAY_TICKS * SWEEP_INTERVAL_S

    def _look_at_client(self, client: ClientConnection) -> None:
        if client.in_request:
            client.idle_ticks = 0
            if not client.held_back:
                self._look_at_request(client)
        elif client.exchange is not None:
            client.idle_ticks = 0
        else:
            client.idle_ticks += 1
            if client.idle_ticks <= self._idle:
                return
            if client.transport.is_closing():
                # It does not take what it is still owed.
                client.transport.abort()
            else:
                client.idle_ticks = 0
                client.close()

    def _look_at_request(self, client: ClientConnection) -> None:
        """One that arrives: its head has one deadline, its body has to keep growing."""
        client.request_ticks += 1
        if not client.in_body:
            if client.request_ticks > self._head:
                client.refuse_slow()
        elif client.request_ticks > self._body:
            client.request_ticks = 0
            if not client.grew(self._body_least):
                client.refuse_slow()


def _ticks(seconds: float) -> int:
    return max(1, round(seconds / SWEEP_INTERVAL_S))
