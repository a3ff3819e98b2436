"""One request and its answer: choose a replica, send, and tell what came of it.

An exchange is a small state machine driven by two connections, the client's and the replica's. Up
to the first byte sent to the client it may move to another replica; after it, a failure is told as
one.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING

from router.http.errors import error_body
from router.http.forward import connect, send
from router.http.heads import answer
from router.http.local_reply import answer_locally, answer_no_replica
from router.http.model_name import model_of
from router.http.paths import Treatment
from router.http.relay import Relay
from router.http.tunnel import switch
from router.prompt import Prompt, PromptError
from router.scheduling.placer import NO_CHAIN, Placement
from router.telemetry.record import Outcome

if TYPE_CHECKING:
    from router.fleet.fleet import FaultReason
    from router.fleet.replica import Replica
    from router.http.gateway import Gateway
    from router.http.request import Request
    from router.http.server import ClientConnection
    from router.http.upstream import UpstreamConnection
    from router.http.usage import Usage

log = logging.getLogger(__name__)

_RETRY_STATUS = frozenset((502, 503, 504))
_BODILESS = frozenset((204, 304))


class Failure:
    """The last attempt that failed: what the client is told if no other succeeds."""

    __slots__ = ("message", "outcome", "status")

    def __init__(self, status: int, outcome: str, message: str) -> None:
        self.status = status
        self.outcome = outcome
        self.message = message


class Exchange:
    """The state of one request; see the module's text."""

    __slots__ = (
        "_failure",
        "_tried",
        "bytes_in",
        "bytes_out",
        "client",
        "connecting",
        "done",
        "gateway",
        "idle_ticks",
        "key",
        "model",
        "overhead",
        "paused",
        "placement",
        "prompt",
        "relay",
        "replica",
        "request",
        "retries",
        "splice",
        "status",
        "tunnel",
        "unsent",
        "upstream",
        "usage",
    )

    def __init__(self, gateway: Gateway, client: ClientConnection, request: Request) -> None:
        self.gateway = gateway
        self.client = client
        self.request = request
        self.prompt: Prompt | None = None
        self.splice = -1
        """Where in the body the request for usage goes; -1 when the router makes none."""
        self._tried = 0
        self.connecting: asyncio.Task[None] | None = None
        self._failure: Failure | None = None
        self.placement: Placement | None = None
        self.replica: Replica | None = None
        self.upstream: UpstreamConnection | None = None
        self.relay: Relay | None = None
        """The answer on its way to the client; None until its head has come, and at the end."""
        self.usage: Usage | None = None
        self.model = ""
        self.key = ""
        self.status = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.retries = 0
        self.overhead = -1.0
        self.paused = False
        self.tunnel = False
        """The protocol was switched: bytes pass both ways unread."""
        self.done = False
        self.idle_ticks = 0
        """Sweeps since something came from the replica, or while paused went to the client."""
        self.unsent = 0
        """While paused: bytes that waited for the client at the last sweep."""

    # -- choosing

    def start(self) -> None:
        """Do what the request's path asks for."""
        gateway, request = self.gateway, self.request
        gateway.exchanges.add(self)
        gateway.retry_budget.earn()
        rule = request.rule
        if rule.parse is not None and request.method == b"POST":
            try:
                self.prompt = prompt = rule.parse(request.body, gateway.fleet.templates.models)
            except PromptError as exc:
                self.refuse(400, exc.message, Outcome.BAD_REQUEST, param=exc.param)
                return
            self.model = prompt.model
            self.key = request.session.decode("latin-1") if request.session else prompt.key
            if prompt.usage_offset >= 0 and gateway.asks_usage and not request.old:
                self.splice = prompt.usage_offset
            exact = gateway.exact
            if exact is not None and exact.prepare(rule.api, prompt, request.body, self._tokenised):
                return  # it calls _tokenised
        elif rule.treatment is Treatment.BALANCE or rule.treatment is Treatment.PREFIX:
            if request.body:
                self.model = model_of(request)
        else:
            answer_locally(self, gateway, request)
            return
        self._place()

    def _tokenised(self) -> None:
        """The prompt was tokenised beside the event loop, or not in time."""
        if not self.done:
            self._place()

    def _place(self) -> None:
        try:
            self._place_and_send()
        except Exception as exc:  # a policy may be anybody's code
            self.crashed(exc)

    def _place_and_send(self) -> None:
        gateway = self.gateway
        fleet = gateway.fleet
        serving = fleet.serving(self.model)
        eligible = serving & fleet.usable & ~self._tried
        if not eligible:
            # Never one already tried, and the last resort only where nothing was.
            eligible = 0 if self._tried else fleet.last_resort(self.model)
            if not eligible:
                if self._failure is not None:
                    self._give_up(self._failure)
                else:
                    answer_no_replica(self, gateway, serving)
                return
        prompt = self.prompt
        if prompt is not None:
            self.placement = placement = gateway.placer.place(
                prompt.chain,
                prompt.size,
                self.model,
                eligible,
                self.key,
                monotonic(),
                stream=prompt.stream,
                output_limit=prompt.output_limit,
                more=prompt.more,
            )
        else:
            self.placement = placement = gateway.balancer.place(
                NO_CHAIN, 0, "", eligible, "", monotonic(), stream=False
            )
        slot = placement.slot
        self._tried |= 1 << slot
        if fleet.half_open >> slot & 1:
            fleet.admitted(slot)
        self.replica = fleet.replicas[slot]
        upstream = gateway.pools[slot].take()
        if upstream is not None:
            send(self, upstream)
        else:
            connect(self)

    # -- the replica's answer

    def respond(self, upstream: UpstreamConnection, body: bytes) -> None:
        """The head of the answer has come, and this much of its body."""
        request, status = self.request, upstream.status
        if status in _RETRY_STATUS and self._may_retry():
            self.retries += 1
            self._lost_one(Outcome.UPSTREAM_5XX, "status")
            self._place()
            return
        if not body and upstream.heads_stream and request.method != b"HEAD":
            # Engines send a stream's head when they accept a request, long before its first token:
            # held back, it leaves the way to another replica open.
            return
        self.status = status
        self._free_body()
        if self.gateway.closing:
            request.keep_alive = False
        client = self.client
        self.relay = relay = Relay(self, upstream, client.transport)
        upstream.relay = relay
        if client.paused:
            self.pause()
        if request.method == b"HEAD":
            # The parser waits for a body that does not come; the connection cannot be used on.
            upstream.complete = True
            upstream.keep_alive = False
            body = b""
        elif status in _BODILESS:
            body = b""
        relay.begin(body)

    def switched(self, rest: bytes) -> None:
        """The replica has switched protocols, and sent this behind its head."""
        upstream = self.upstream
        assert upstream is not None
        self.status = 101
        self.tunnel = True
        self._free_body()
        switch(self, upstream, rest)

    def first_token(self, now: float) -> None:
        """The first token has come."""
        assert self.placement is not None
        self.gateway.placer.first_token(self.placement, now)

    def answered(self) -> None:
        """The replica's answer is whole and has been handed to the client's transport."""
        upstream, self.upstream = self.upstream, None
        assert upstream is not None
        upstream.release()
        self._complete()

    def _complete(self) -> None:
        placement, gateway, relay = self.placement, self.gateway, self.relay
        assert placement is not None
        assert relay is not None
        now = monotonic()
        if self.prompt is None:
            gateway.balancer.finished(placement, now)
        else:
            usage = relay.usage() if self.status == 200 else None
            if usage is None:
                gateway.placer.finished(placement, now)
            else:
                self.usage = usage
                gateway.placer.finished(
                    placement, now, usage.prompt_tokens, usage.output_tokens, usage.cached_tokens
                )
        if self.status < 500:
            gateway.fleet.succeeded(placement.slot, now)
            self._end(Outcome.OK)
        else:
            gateway.fleet.failed(placement.slot, "status", now)
            self._end(Outcome.UPSTREAM_5XX)
        self.client.exchange_ended(self.request.keep_alive)

    # -- failures

    def upstream_lost(self, exc: Exception | None) -> None:
        """The replica's connection has closed."""
        upstream, self.upstream = self.upstream, None
        assert upstream is not None
        if self.tunnel:
            self._settle()
            self._end(Outcome.OK)
            self.client.close()
        elif self.relay is not None:
            if upstream.until_close and exc is None:
                self._complete()
            else:
                what = "closed its connection mid-answer"
                self._cut_off(Outcome.DIED_MID_STREAM, "died", what, upstream.in_chunk)
        elif upstream.reused and not upstream.touched:
            # It was closed while idle, which crossed with our request: no fault of the replica's.
            connect(self)
        else:
            what = "closed its connection without an answer"
            self.attempt_failed(502, Outcome.DIED_BEFORE_HEAD, "died", what)

    def broken(self, why: str) -> None:
        """What the replica sends is not HTTP."""
        if self.relay is not None:
            # How far it was is not known, so that the client may have a part of a chunk.
            self._cut_off(Outcome.BAD_RESPONSE, "died", why, in_chunk=True)
        else:
            self.attempt_failed(502, Outcome.BAD_RESPONSE, "died", why)

    def timed_out(self) -> None:
        """Nothing has come for longer than the settings allow. Called by the sweep."""
        upstream = self.upstream
        if self.relay is not None and upstream is not None:
            what = "has been silent for too long"
            self._cut_off(Outcome.TIMEOUT_SILENCE, "timeout", what, upstream.in_chunk)
        else:
            # The engine may be at work on it: sending it to another as well would double the load.
            what = "did not answer in time"
            self.attempt_failed(504, Outcome.TIMEOUT_FIRST_BYTE, "timeout", what, retry=False)

    def client_stalled(self) -> None:
        """The client has not taken a byte for longer than the settings allow. Called by the
        sweep."""
        self.client.exchange = None
        self.client.transport.abort()
        self._abandon(Outcome.CLIENT_SLOW)

    def client_gone(self) -> None:
        """Nobody waits for the answer: stop the engine's work on it."""
        # A tunnel ends with its other side, which has been closed.
        if not self.tunnel:
            self._abandon(Outcome.CLIENT_GONE)

    def crashed(self, exc: Exception) -> None:
        """The router itself has failed on this request: keep the books right, and say so."""
        log.error("request %s failed", self.request.request_id.decode(), exc_info=exc)
        if self.done or self.relay is not None:
            self.client.transport.abort()
        else:
            self._settle()
            self._drop_upstream()
            self.refuse(500, "the router failed on this request", Outcome.INTERNAL)

    def attempt_failed(
        self, status: int, outcome: str, reason: FaultReason, what: str, *, retry: bool = True
    ) -> None:
        """The replica chosen will not answer; nothing has been sent to the client yet."""
        assert self.replica is not None
        self._failure = Failure(status, outcome, f"replica {self.replica.name} {what}")
        self._lost_one(outcome, reason)
        if retry and self._may_retry():
            self.retries += 1
            self._place()
        else:
            self._give_up(self._failure)

    def _lost_one(self, outcome: str, reason: FaultReason) -> None:
        """Take the attempt out of the books and tell the fleet."""
        gateway, replica, placement = self.gateway, self.replica, self.placement
        assert replica is not None
        assert placement is not None
        now = monotonic()
        gateway.placer.failed(placement, now)
        gateway.fleet.failed(placement.slot, reason, now)
        gateway.telemetry.attempt_failed(replica.name, outcome)
        self._drop_upstream()

    def _may_retry(self) -> bool:
        gateway = self.gateway
        if self.retries >= gateway.settings.retries or self.request.upgrade:
            return False
        fleet = gateway.fleet
        if not fleet.serving(self.model) & fleet.usable & ~self._tried:
            return False
        return gateway.retry_budget.take()

    def _give_up(self, failure: Failure) -> None:
        self.refuse(failure.status, failure.message, failure.outcome, code="replica_failed")

    def _cut_off(self, outcome: str, reason: FaultReason, what: str, in_chunk: bool) -> None:
        """The client has a part of the answer: say that no more will come, never as a normal
        end."""
        replica, relay = self.replica, self.relay
        assert replica is not None
        assert relay is not None
        reset = relay.break_off(f"replica {replica.name} {what}", in_chunk)
        self._lost_one(outcome, reason)
        self._end(outcome)
        if reset:
            self.client.exchange = None
            self.client.reset()
        else:
            # Without the last chunk, or short of its length, the body is visibly cut off.
            self.client.exchange_ended(keep_alive=False)

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
        extra = self.gateway.retry_after if status == 503 else b""
        self.reply(status, body, outcome, extra=extra)

    def reply(
        self, status: int, body: bytes, outcome: str = Outcome.OK, *, extra: bytes = b""
    ) -> None:
        """Answer from here, without a replica."""
        request = self.request
        self.status = status
        self.bytes_out = len(body)
        keep_alive = request.keep_alive and not self.gateway.closing
        self.client.transport.write(
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
        self.client.exchange_ended(keep_alive)

    # -- the end

    def _abandon(self, outcome: str) -> None:
        connecting, self.connecting = self.connecting, None
        if connecting is not None:
            connecting.cancel()
        self._settle()
        self._drop_upstream()
        self._end(outcome)

    def _settle(self) -> None:
        """Give back what an answer that will not be finished was charged."""
        placement, gateway = self.placement, self.gateway
        if placement is None:
            return
        now = monotonic()
        if self.relay is None:
            gateway.placer.failed(placement, now)
        elif self.prompt is None:
            gateway.balancer.finished(placement, now)
        else:
            gateway.placer.finished(placement, now)
        if 0 < self.status < 500:
            gateway.fleet.succeeded(placement.slot, now)
        else:
            # A trial that ended like this proved nothing.
            gateway.fleet.withdrawn(placement.slot)

    def _end(self, outcome: str) -> None:
        """Everything is over: tell what happened. Called once."""
        self.done = True
        self._free_body()
        gateway = self.gateway
        gateway.exchanges.discard(self)
        try:
            gateway.ended(self, outcome)
        except Exception:
            log.exception("the end of request %s was not told", self.request.request_id.decode())
        # They know each other: break the circle.
        self.relay = None

    def _free_body(self) -> None:
        request = self.request
        if request.body_size:
            self.gateway.live.body_bytes -= request.body_size
            self.bytes_in = request.body_size
            request.body_size = 0
            request.body = b""

    # -- flow control

    def pause(self) -> None:
        """The client is slow: read no more from the replica."""
        if self.upstream is not None and self.relay is not None and not self.paused:
            self.paused = True
            self.idle_ticks = self.unsent = 0
            self.upstream.transport.pause_reading()

    def resume(self) -> None:
        """The client has caught up."""
        if self.paused:
            self.paused = False
            self.idle_ticks = 0
            if self.upstream is not None:
                self.upstream.transport.resume_reading()
