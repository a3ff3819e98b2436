"""A request on its way to the replica chosen."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from router.http.heads import header_lines
from router.telemetry.record import Outcome

if TYPE_CHECKING:
    from router.http.exchange import Exchange
    from router.http.upstream import UpstreamConnection

ASK_USAGE = b'"stream_options":{"include_usage":true},'
# Bodies up to this size go out in one piece with their head: copying them costs less than a second
# buffer.
_ONE_PIECE = 16_384


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
            upstream = await exchange.gateway.pools[placement.slot].connect()
        finally:
            exchange.connecting = None
    except TimeoutError:
        said = "did not accept a connection in time"
        exchange.attempt_failed(504, Outcome.TIMEOUT_CONNECT, "timeout", said)
    except OSError as exc:
        said = f"could not be connected to ({exc})"
        exchange.attempt_failed(502, Outcome.CONNECT, "connect", said)
    except Exception as exc:
        exchange.crashed(exc)
    else:
        send(exchange, upstream)


def send(exchange: Exchange, upstream: UpstreamConnection) -> None:
    """Write the request, its head rebuilt and its body as it came."""
    request, replica, splice = exchange.request, exchange.replica, exchange.splice
    assert replica is not None
    upstream.begin(exchange)
    exchange.upstream = upstream
    exchange.idle_ticks = 0
    body = request.body
    if splice >= 0:
        length = b"content-length: %d\r\n" % (len(body) + len(ASK_USAGE))
    elif body or request.method not in (b"GET", b"HEAD"):
        length = b"content-length: %d\r\n" % len(body)
    else:
        length = b""
    head = b"%b %b%b HTTP/1.1\r\nhost: %b\r\n%b%b%bx-request-id: %b\r\n\r\n" % (
        request.method,
        replica.prefix.encode(),
        request.target,
        replica.host_header,
        header_lines(request.headers),
        length,
        b"connection: upgrade\r\nupgrade: %b\r\n" % request.upgrade if request.upgrade else b"",
        request.request_id,
    )
    transport = upstream.transport
    if splice >= 0:
        view = memoryview(body)
        parts = (head, view[:splice], ASK_USAGE, view[splice:])
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
