"""One request and its answer: choose a replica, send, relay, and tell what came of it.

An exchange is a small state machine driven by two connections, the client's and the replica's. Up to the
first byte sent to the client it may move to another replica; after it, a failure is told as one.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from router.http.errors import error_body, error_event
from router.http.heads import REASONS, answer
from router.http.local import answer_locally
from router.http.model_name import model_of
from router.http.paths import Treatment
from router.http.dechunk import Dechunker
from router.http.tunnel import join
from router.http.usage import Usage, find_usage
from router.http.usage_filter import UsageFilter
from router.insight.record import Outcome
from router.placement import NO_CHAIN, Placement, Placer
from router.prompt import Prompt, PromptError

if TYPE_CHECKING:
    from router.fleet.replica import Replica
    from router.http.gateway import Gateway
    from router.http.request import Request
    from router.http.server import ClientConnection
    from router.http.upstream import UpstreamConnection

_ASK_USAGE = b'"stream_options":{"include_usage":true},'
_RETRY_STATUS = (502, 503, 504)


class Exchange:
    """The state of one request; see the module's text."""

    __slots__ = (
        "_body",
        "_client",
        "_connecting",
        "_dechunker",
        "_error",
        "_filter",
        "_gateway",
        "_head",
        "_held_bytes",
        "_last",
        "_last2",
        "_last3",
        "_placer",
        "_splice",
        "_tried",
        "active",
        "bytes_out",
        "done",
        "early",
        "first_at",
        "head_sent",
        "idle_ticks",
        "key",
        "model",
        "overhead",
        "paused",
        "placement",
        "prompt",
        "replica",
        "request",
        "retries",
        "status",
        "tunnel",
        "upstream",
        "usage",
    )

    def __init__(self, gateway: Gateway, client: ClientConnection, request: Request) -> None:
        self._gateway = gateway
        self._client = client
        self.request = request
        self._body = request.body
        self._held_bytes = request.body_size
        self.prompt: Prompt | None = None
        self._splice = -1
        self._placer: Placer = gateway.balancer
        self._tried = 0
        self._connecting: asyncio.Task[None] | None = None
        self._filter: UsageFilter | None = None
        self._dechunker: Dechunker | None = None
        self._head = b""
        self.first_at = 0.0
        self._last = self._last2 = self._last3 = b""
        self._error: tuple[int, str, str] | None = None
        """(status, outcome, message) of the last attempt that failed."""
        self.placement: Placement | None = None
        self.replica: Replica | None = None
        self.upstream: UpstreamConnection | None = None
        self.model = ""
        self.key = ""
        self.status = 0
        self.retries = 0
        self.overhead = -1.0
        self.bytes_out = 0
        self.head_sent = False
        self.paused = False
        self.done = False
        self.active = True
        """Something has come from the replica since the last sweep."""
        self.idle_ticks = 0
        self.usage: Usage | None = None
        self.tunnel = False
        """The protocol was switched: bytes pass both ways unread."""
        self.early = b""
        """Bytes a client sent before its switch of protocols was confirmed."""

    # -- choosing

    def start(self) -> None:
        """Do what the request's path asks for."""
        gateway, request = self._gateway, self.request
        gateway.exchanges.add(self)
        treatment = request.rule.treatment
        if treatment is Treatment.PREFIX and request.method == b"POST":
            parse = request.rule.parse
            assert parse is not None
            try:
                prompt = parse(request.body)
            except PromptError as exc:
                self.refuse(400, str(exc), Outcome.BAD_REQUEST, param=exc.param)
                return
            self.prompt = prompt
            self._placer = gateway.placer
            self.model = prompt.model
            if prompt.usage_offset >= 0 and gateway.settings.stream_usage and not request.old:
                self._splice = prompt.usage_offset
                self._filter = UsageFilter()
        elif treatment is Treatment.BALANCE or treatment is Treatment.PREFIX:
            if request.body:
                self.model = model_of(request)
        else:
            answer_locally(self, gateway, request)
            return
        self._place()

    def _place(self) -> None:
        gateway = self._gateway
        fleet = gateway.fleet
        serving = fleet.serving(self.model)
        eligible = serving & fleet.usable & ~self._tried
        if not eligible:
            eligible = fleet.last_resort(self.model) & ~self._tried
            if not eligible or self._tried:
                self._no_replica(serving)
                return
        prompt, request = self.prompt, self.request
        now = monotonic()
        if prompt is not None:
            key = request.session.decode("latin-1") if request.session else prompt.key
            self.key = key
            self.placement = placement = self._placer.place(
                prompt.chain,
                prompt.size,
                self.model,
                eligible,
                key,
                now,
                stream=prompt.stream,
                output_limit=prompt.output_limit,
            )
        else:
            self.placement = placement = self._placer.place(
                NO_CHAIN, 0, "", eligible, "", now, stream=False
            )
        slot = placement.slot
        bit = 1 << slot
        self._tried |= bit
        if fleet.half_open & bit:
            fleet.admitted(slot)
        replica = fleet.replicas[slot]
        assert replica is not None
        self.replica = replica
        upstream = gateway.pools[slot].take()
        if upstream is not None:
            self._send(upstream)
        else:
            self._connect()

    def _no_replica(self, serving: int) -> None:
        if self._error is not None:
            # A replica's own 502, 503 or 504 says more than we could.
            self._give_up()
            return
        fleet = self._gateway.fleet
        if not serving and self.model and fleet.models_known:
            names = ", ".join(card.id for card in fleet.all_models()) or "none"
            self.refuse(
                404,
                f"The model `{self.model}` does not exist. Models served here: {names}.",
                Outcome.UNKNOWN_MODEL,
                code="model_not_found",
                param="model",
            )
            return
        what = f"a replica that serves `{self.model}`" if self.model else "a replica"
        tried = f" ({self.retries + 1} tried)" if self._tried else ""
        self.refuse(503, f"{what} is not available just now{tried}; try again", Outcome.NO_REPLICA)

    # -- sending

    def _connect(self) -> None:
        self._connecting = task = self._gateway.loop.create_task(self._connect_and_send())
        self._gateway.tasks.add(task)
        task.add_done_callback(self._gateway.tasks.discard)

    async def _connect_and_send(self) -> None:
        placement = self.placement
        assert placement is not None
        pool = self._gateway.pools[placement.slot]
        try:
            upstream = await pool.connect()
        except TimeoutError:
            self._connecting = None
            self._failed(Outcome.TIMEOUT_CONNECT, "timeout", "did not accept a connection in time")
        except OSError as exc:
            self._connecting = None
            self._failed(Outcome.CONNECT, "connect", f"could not be connected to ({exc})")
        else:
            self._connecting = None
            if self.done:
                upstream.drop()
                pool.sweep(0.0)
            else:
                self._send(upstream)

    def _send(self, upstream: UpstreamConnection) -> None:
        request, replica = self.request, self.replica
        assert replica is not None
        upstream.begin(self)
        self.upstream = upstream
        self.active = True
        lines = request.lines
        body = self._body
        splice = self._splice
        size = len(body) if splice < 0 else len(body) + len(_ASK_USAGE)
        head = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%b%bx-request-id: %b\r\n\r\n" % (
            request.method,
            replica.prefix.encode() + request.target if replica.prefix else request.target,
            replica.host_header,
            b"\r\n".join(lines) + b"\r\n" if lines else b"",
            b"content-length: %d\r\n" % size if body or request.method not in (b"GET", b"HEAD") else b"",
            b"connection: upgrade\r\nupgrade: %b\r\n" % request.upgrade if request.upgrade else b"",
            request.request_id,
        )
        write = upstream.transport.write
        if splice >= 0:
            view = memoryview(body)
            if size < 16384:
                write(b"%b%b%b%b" % (head, view[:splice], _ASK_USAGE, view[splice:]))
            else:
                upstream.transport.writelines((head, view[:splice], _ASK_USAGE, view[splice:]))
        elif len(body) < 16384:
            write(head + body if body else head)
        else:
            upstream.transport.writelines((head, body))
        if self.overhead < 0.0:
            self.overhead = monotonic() - request.started

    # -- the replica's answer

    def respond(self, body: bytes) -> None:
        """The head of the answer is there, and this much of its body."""
        gateway, upstream, request = self._gateway, self.upstream, self.request
        assert upstream is not None
        status = upstream.status
        if status in _RETRY_STATUS and self._may_retry():
            self.retries += 1
            self._lost_one(Outcome.UPSTREAM_5XX, "status")
            self._place()
            return
        self.status = status
        self.head_sent = True
        self._free_body()
        lines = upstream.lines
        closing = gateway.closing or not request.keep_alive
        if upstream.chunked and request.old:
            self._dechunker = Dechunker()
            closing = True
            lines = [line for line in lines if not line.lower().startswith(b"transfer-encoding")]
        elif upstream.until_close and request.method != b"HEAD":
            closing = True
        if closing:
            request.keep_alive = False
        if not upstream.has_request_id:
            lines.append(b"x-request-id: " + request.request_id)
        if closing:
            lines.append(b"connection: close")
        elif request.old:
            lines.append(b"connection: keep-alive")
        if request.explain:
            lines.extend(gateway.explain_lines(self))
        head = b"HTTP/1.1 %d %b\r\n%b\r\n\r\n" % (
            status,
            upstream.reason or REASONS.get(status, b""),
            b"\r\n".join(lines),
        )
        if status != 200 or not upstream.chunked or not upstream.type.startswith(b"text/event-stream"):
            self._filter = None
        if request.method == b"HEAD":
            # The parser waits for a body that does not come; the connection cannot be used on.
            self._client.transport.write(head)
            upstream.keep_alive = False
            self._finish()
            return
        if body or upstream.complete:
            self._relay_first(head, body)
        else:
            self._client.transport.write(head)

    def _relay_first(self, head: bytes, body: bytes) -> None:
        self._head = head
        self.relay(body)

    def relay(self, data: bytes) -> None:
        """Body bytes as they came; they go on as they came."""
        self.active = True
        if not self.first_at and data:
            mark = self.request.rule.first_token_mark
            if not mark or mark in data:
                self.first_at = now = monotonic()
                placement = self.placement
                assert placement is not None
                self._placer.first_token(placement, now)
        self._last3 = self._last2
        self._last2 = self._last
        self._last = data
        upstream = self.upstream
        assert upstream is not None
        if self._filter is not None:
            data = self._filter.feed(data, upstream.in_chunk)
        elif self._dechunker is not None:
            data = self._dechunker.feed(data)
        self.bytes_out += len(data)
        if self._head:
            data = self._head + data
            self._head = b""
        if data:
            self._client.transport.write(data)
        if upstream.complete:
            self._finish()

    # -- failures

    def upstream_lost(self, exc: Exception | None) -> None:
        """The replica's connection has closed."""
        upstream, self.upstream = self.upstream, None
        assert upstream is not None
        if self.tunnel:
            self._end(Outcome.OK)
            self._client.close()
        elif self.head_sent:
            if upstream.until_close and exc is None:
                self._complete(None)
            else:
                self._died_mid_stream(upstream, "closed its connection in the middle of the answer")
        elif upstream.reused and not upstream.touched:
            # It had been closed while idle, which crossed with our request: not the replica's fault.
            self._connect()
        else:
            self._failed(Outcome.DIED_BEFORE_HEAD, "died", "closed its connection without an answer")

    def broken(self, why: str) -> None:
        """What the replica sends is not HTTP."""
        upstream = self.upstream
        assert upstream is not None
        if self.head_sent:
            self._died_mid_stream(upstream, why)
        else:
            self._failed(Outcome.BAD_RESPONSE, "died", why)

    def timed_out(self) -> None:
        """Nothing has come for longer than the settings allow. Called by the sweep."""
        upstream = self.upstream
        assert upstream is not None
        if self.head_sent:
            self._died_mid_stream(upstream, "has been silent for too long", Outcome.TIMEOUT_SILENCE)
        else:
            # The engine may be at work on it: sending it to another as well would double the load.
            self._failed(Outcome.TIMEOUT_FIRST_BYTE, "timeout", "did not answer in time", retry=False)

    def client_stalled(self) -> None:
        """The client has not taken a byte for longer than the settings allow. Called by the sweep."""
        self._client.transport.abort()

    def client_gone(self) -> None:
        """Nobody waits for the answer: stop the engine's work on it."""
        if self.tunnel:
            if self.upstream is not None:
                self.upstream.transport.close()
            return
        if self._connecting is not None:
            self._connecting.cancel()
        if self.placement is not None:
            self._settle()
        self._drop_upstream()
        self._end(Outcome.CLIENT_GONE)

    def _failed(self, outcome: str, reason: str, what: str, *, retry: bool = True) -> None:
        """The replica chosen will not answer; nothing has been sent to the client yet."""
        replica = self.replica
        assert replica is not None
        status = 504 if outcome in (Outcome.TIMEOUT_CONNECT, Outcome.TIMEOUT_FIRST_BYTE) else 502
        self._error = (status, outcome, f"replica {replica.name} {what}")
        may_retry = retry and self._may_retry()
        self._lost_one(outcome, reason)
        if may_retry:
            self.retries += 1
            self._place()
        else:
            self._give_up()

    def _lost_one(self, outcome: str, reason: str) -> None:
        """Take the attempt out of the books and tell the fleet."""
        gateway, replica, placement = self._gateway, self.replica, self.placement
        assert replica is not None
        assert placement is not None
        now = monotonic()
        self._placer.failed(placement, now)
        gateway.fleet.failed(placement.slot, reason, now)
        gateway.telemetry.attempt_failed(replica.name, outcome)
        self._drop_upstream()

    def _may_retry(self) -> bool:
        gateway = self._gateway
        if self.retries >= gateway.settings.retries or self.request.upgrade:
            return False
        fleet = gateway.fleet
        if not fleet.serving(self.model) & fleet.usable & ~self._tried:
            return False
        return gateway.retry_budget.take()

    def _give_up(self) -> None:
        assert self._error is not None
        status, outcome, message = self._error
        self.refuse(status, message, outcome, code="replica_failed")

    def _died_mid_stream(
        self, upstream: UpstreamConnection, what: str, outcome: str = Outcome.DIED_MID_STREAM
    ) -> None:
        """The client has a part of the answer: tell it in the stream's own form, never as an end."""
        replica = self.replica
        assert replica is not None
        client = self._client
        if upstream.chunked and upstream.type.startswith(b"text/event-stream"):
            whole = self._filter.whole if self._filter is not None else not upstream.in_chunk
            if self._dechunker is not None or whole:
                event = error_event(self.request.rule.form, f"replica {replica.name} {what}")
                framed = event if self._dechunker is not None else b"%x\r\n%b\r\n" % (len(event), event)
                client.transport.write(framed)
        self.upstream = upstream
        self._lost_one(outcome, "timeout" if outcome == Outcome.TIMEOUT_SILENCE else "died")
        self._end(outcome)
        # Without the last chunk, or short of its length, the body is visibly cut off.
        client.exchange_ended(keep_alive=False)

    def _drop_upstream(self) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.drop()

    # -- answers of our own

    def refuse(
        self,
        status: int,
        message: str,
        outcome: str,
        *,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        """Answer with an error in the API's form."""
        body = error_body(self.request.rule.form, status, message, code, param)
        extra = self._gateway.retry_after if status == 503 else b""
        self.reply(status, body, outcome, extra=extra)

    def reply(
        self,
        status: int,
        body: bytes,
        outcome: str = Outcome.OK,
        *,
        extra: bytes = b"",
    ) -> None:
        """Answer from here, without a replica."""
        request = self.request
        self.status = status
        keep_alive = request.keep_alive and not self._gateway.closing
        self.bytes_out = len(body)
        self._client.transport.write(
            answer(
                status,
                body,
                request_id=request.request_id,
                close=not keep_alive,
                old=request.old,
                head_only=request.method == b"HEAD",
                extra=extra,
            )
        )
        self._end(outcome)
        self._client.exchange_ended(keep_alive)

    # -- the end

    def _finish(self) -> None:
        """The replica's answer is whole."""
        upstream, self.upstream = self.upstream, None
        assert upstream is not None
        upstream.release()
        usage = None
        if self.prompt is not None and self.status == 200:
            usage = find_usage(self._last3 + self._last2 + self._last)
        self._complete(usage)

    def _complete(self, usage: Usage | None) -> None:
        status = self.status
        now = monotonic()
        placement, gateway = self.placement, self._gateway
        assert placement is not None
        if usage is not None:
            self.usage = usage
            self._placer.finished(
                placement, now, usage.prompt_tokens, usage.output_tokens, usage.cached_tokens
            )
        else:
            self._placer.finished(placement, now)
        if status < 500:
            gateway.fleet.succeeded(placement.slot, now)
            self._end(Outcome.OK)
        else:
            gateway.fleet.failed(placement.slot, "status", now)
            self._end(Outcome.UPSTREAM_5XX)
        self._client.exchange_ended(self.request.keep_alive)

    def _settle(self) -> None:
        """Give back what an answer that will not be finished was charged."""
        placement = self.placement
        assert placement is not None
        if self.first_at:
            self._placer.finished(placement, monotonic())
        else:
            self._placer.failed(placement, monotonic())

    def _end(self, outcome: str) -> None:
        """Everything is over: leave the books as they should be and tell what happened."""
        self._free_body()
        self.done = True
        gateway = self._gateway
        gateway.exchanges.discard(self)
        gateway.ended(self, outcome)

    def _free_body(self) -> None:
        self._body = self.request.body = b""
        self._gateway.live.body_bytes -= self._held_bytes
        self._held_bytes = 0

    # -- flow control and switched protocols

    def pause(self) -> None:
        """The client is slow: read no more from the replica."""
        if self.upstream is not None and self.head_sent:
            self.paused = True
            self.upstream.transport.pause_reading()

    def resume(self) -> None:
        """The client has caught up."""
        if self.paused:
            self.paused = False
            self.active = True
            if self.upstream is not None:
                self.upstream.transport.resume_reading()

    def switched(self, rest: bytes) -> None:
        """The replica has switched protocols: from here on bytes go both ways as they are."""
        upstream, request = self.upstream, self.request
        assert upstream is not None
        if not request.upgrade:
            self.broken("the replica switched protocols unasked")
            return
        self.status = 101
        self.head_sent = True
        self.tunnel = True
        self._free_body()
        lines = [*upstream.lines, b"connection: upgrade", b"upgrade: " + request.upgrade]
        self._client.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\n%b\r\n\r\n%b" % (b"\r\n".join(lines), rest)
        )
        join(self._client, upstream)
        if self.early:
            upstream.transport.write(self.early)
