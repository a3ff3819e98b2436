"""A request on its way to the replica chosen."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from router.descriptors import is_local
from router.http.heads import header_lines
from router.identity import VIA
from router.telemetry.record import Outcome

if TYPE_CHECKING:
    from router.http.exchange import Exchange
    from router.http.gateway import Gateway
    from router.http.upstream import UpstreamConnection

RANK = b"x-data-parallel-rank"
ASK_USAGE = b'"stream_options":{"include_usage":true},'
_VIA = f"via: {VIA}\r\n".encode()
# Bodies up to this size go out in one piece with their head: copying them costs less than a second
# buffer.
_ONE_PIECE = 16_384
# Turns of the event loop after which a connection that was closed has given up its file.
_CLOSED_AFTER = 3


def _without_rank(headers: list[bytes]) -> list[bytes]:
    """Without the rank a client asks for: where the router tells ranks apart, it names one."""
    pairs = zip(headers[::2], headers[1::2], strict=True)
    return [part for pair in pairs if pair[0].lower() != RANK for part in pair]


def connect(exchange: Exchange) -> None:
    """Send once there is a new connection."""
    gateway = exchange.gateway
    exchange.connecting = task = gateway.loop.create_task(_connect_and_send(exchange))
    gateway.tasks.add(task)
    task.add_done_callback(gateway.tasks.discard)


async def _connect_and_send(exchange: Exchange) -> None:
    placement = exchange.placement
    assert placement is not None
    try:
        try:
            upstream = await _connected(exchange.gateway, placement.slot)
        finally:
            exchange.connecting = None
    except TimeoutError:
        said = "did not accept a connection in time"
        exchange.attempt_failed(504, Outcome.TIMEOUT_CONNECT, "timeout", said)
    except OSError as exc:
        said = f"could not be connected to ({exc})"
        if is_local(exc):
            exchange.gateway.lacks(exc)
            exchange.attempt_failed(503, Outcome.OVERLOADED, None, said)
        else:
            exchange.attempt_failed(502, Outcome.CONNECT, "connect", said)
    except Exception as exc:
        exchange.crashed(exc)
    else:
        send(exchange, upstream)


async def _connected(gateway: Gateway, slot: int) -> UpstreamConnection:
    pool = gateway.pools[slot]
    try:
        return await pool.connect()
    except OSError as exc:
        if not is_local(exc):
            raise
    # Idle connections hold what is lacking: give them up, and try again once they are closed.
    for other in gateway.pools:
        other.clear()
    for _ in range(_CLOSED_AFTER):
        await asyncio.sleep(0)
    return await pool.connect()


def send(exchange: Exchange, upstream: UpstreamConnection) -> None:
    """Write the request, its head rebuilt and its body as it came."""
    request, replica, usage_splice_at = exchange.request, exchange.replica, exchange.usage_splice_at
    assert replica is not None
    upstream.begin(exchange)
    exchange.upstream = upstream
    exchange.idle_ticks = 0
    body = request.body
    if usage_splice_at >= 0:
        length = b"content-length: %d\r\n" % (len(body) + len(ASK_USAGE))
    elif body or request.method not in (b"GET", b"HEAD"):
        length = b"content-length: %d\r\n" % len(body)
    else:
        length = b""
    headers = request.headers
    if replica.rank_header:
        headers = _without_rank(headers)
    head = b"%b %b%b HTTP/1.1\r\nhost: %b\r\n%b%b%b%b%bx-request-id: %b\r\n\r\n" % (
        request.method,
        replica.prefix.encode(),
        request.target,
        replica.host_header,
        header_lines(headers),
        _VIA,
        replica.rank_header,
        length,
        b"connection: upgrade\r\nupgrade: %b\r\n" % request.upgrade if request.upgrade else b"",
        request.request_id,
    )
    transport = upstream.transport
    if usage_splice_at >= 0:
        view = memoryview(body)
        parts = (head, view[:usage_splice_at], ASK_USAGE, view[usage_splice_at:])
        if len(body) < _ONE_PIECE:
            transport.write(b"".join(parts))
        else:
            transport.writelines(parts)
    elif len(body) < _ONE_PIECE:
        transport.write(head + body if body else head)
    else:
        transport.writelines((head, body))
    if exchange.overhead < 0.0:
        exchange.overhead = monotonic() - request.started
