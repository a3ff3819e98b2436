"""One request and its answer: choose a replica, send, and tell what came of it.

An exchange is a small state machine driven by two connections, the client's and the replica's. Up
to the first byte sent to the client it may move to another replica; after it, a failure is told as
one.
"""

from __future__ import annotations

import asyncio
import logging
from hashlib import blake2b
from time import monotonic
from typing import TYPE_CHECKING

from router.descriptors import is_local
from router.http.errors import INVALID, error_body
from router.http.events import DEAD, is_of_request
from router.http.forward import connect, send
from router.http.heads import answer
from router.http.local_reply import answer_locally
from router.http.model_name import model_of
from router.http.paths import Treatment
from router.http.refusal import Failure
from router.http.relay import Relay
from router.http.seek import Seek, fitting, holding, name_in, others, read_first, seek_of
from router.http.tunnel import switch
from router.prompt import Prompt, PromptError, without_transfer
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
_MAX_KEY_CHARACTERS = 128
"""Characters of a session's key that is kept as it is."""
_BODILESS = frozenset((204, 304))
# A 500 is read whole before it is passed on, where it is as small as an engine's.
_MAX_ERROR_BYTES = 16 * 1024


def short_key(key: str) -> str:
    """What stands for a long key. Keys are remembered, and a client chooses them."""
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Exchange:
    """The state of one request; see the module's text."""

    __slots__ = (
        "_blamed",
        "_failure",
        "_held",
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
        "seek",
        "status",
        "tried",
        "tunnel",
        "unsent",
        "upstream",
        "usage",
        "usage_splice_at",
    )

    def __init__(self, gateway: Gateway, client: ClientConnection, request: Request) -> None:
        self.gateway = gateway
        self.client = client
        self.request = request
        self.prompt: Prompt | None = None
        self.usage_splice_at = -1
        """Where in the body the request for usage goes; -1 when the router makes none."""
        self.tried = 0
        """Mask of the replicas that are not asked (again)."""
        self.seek: Seek | None = None
        """Where the fleet's books alone do not tell who has what is asked for."""
        self.connecting: asyncio.Task[None] | None = None
        """Connects to a replica, or takes a fresh look at the engines."""
        self._failure: Failure | None = None
        self._blamed = False
        """The fleet has been told that the replica chosen failed."""
        self._held = b""
        """What has come of an error's body that is not passed on yet."""
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
        prompt = None
        try:
            if rule.parse is not None and request.method == b"POST":
                self.prompt = prompt = rule.parse(request.body, gateway.fleet.templates.models)
            if prompt is not None:
                self.model = prompt.model
                if prompt.transfer and not gateway.settings.trust_kv_transfer:
                    request.body = without_transfer(request.body)
            elif rule.treatment is Treatment.BALANCE or rule.treatment is Treatment.PREFIX:
                if request.body:
                    self.model = model_of(request, trust=gateway.settings.trust_kv_transfer)
            elif rule.treatment is Treatment.MODELS and gateway.asks_engine(request):
                self.seek = Seek()
            else:
                answer_locally(self, gateway, request)
                return
        except PromptError as exc:
            param = f"body.{exc.param}" if exc.param else "body"
            self.refuse(400, exc.message, Outcome.BAD_REQUEST, param=param, kind=INVALID)
            return
        if not self.model and request.body and rule.names_model and not self._default_model():
            return
        if rule.keeps:
            named = name_in(request.target) if prompt is None else prompt.follows
            self.seek = seek_of(named)
        if prompt is not None:
            key = request.session.decode("latin-1") if request.session else prompt.key
            self.key = key if len(key) <= _MAX_KEY_CHARACTERS else short_key(key)
            if prompt.usage_offset >= 0 and gateway.asks_usage and not request.is_http10:
                self.usage_splice_at = prompt.usage_offset
            exact = gateway.exact
            if exact is not None and exact.prepare(rule.api, prompt, request.body, self._tokenised):
                return  # it calls _tokenised
        self.place()

    def _default_model(self) -> bool:
        """Give a request that names no model the one to take; False when it was refused.

        An engine takes such a request for its own model, so that it may go anywhere where all
        replicas have the same.
        """
        fleet = self.gateway.fleet
        if not fleet.mixed:
            return True
        self.model = self.gateway.settings.default_model
        if self.model:
            return True
        message = "'model' is required: the replicas serve different models."
        if not fleet.guarded:
            message += f" Models served here: {fleet.model_names()}."
        self.refuse(400, message, Outcome.BAD_REQUEST, param="model")
        return False

    def _tokenised(self) -> None:
        """The prompt was tokenised beside the event loop, or not in time."""
        if not self.done:
            self.place()

    def place(self) -> None:
        """Choose a replica and send; or answer where there is none."""
        try:
            self._place_and_send()
        except Exception as exc:  # a policy may be anybody's code
            self.crashed(exc)

    def _place_and_send(self) -> None:
        gateway = self.gateway
        fleet = gateway.fleet
        serving = fleet.serving(self.model)
        eligible = serving & fleet.usable & ~self.tried
        prompt, seek = self.prompt, self.seek
        if seek is not None:
            seek.held = b""  # of an answer that broke off
            if seek.key:
                eligible = holding(self, seek, serving, eligible)
        if not eligible:
            eligible = others(self, serving)
            if not eligible:
                return
        if fleet.lengths and prompt is not None and self.model in fleet.lengths:
            eligible = fitting(self, eligible)
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
        self._blamed = False
        if fleet.half_open >> slot & 1:
            fleet.admitted(slot)
        self.replica = replica = fleet.replicas[slot]
        assert replica is not None
        self.tried |= replica.bits
        upstream = gateway.pools[slot].take()
        if upstream is not None:
            send(self, upstream)
        else:
            connect(self)

    # -- the replica's answer

    def respond(self, upstream: UpstreamConnection, body: bytes) -> None:
        """The head of the answer has come, and this much of its body."""
        request, status = self.request, upstream.status
        if status >= 500:
            body = self._held + body
            awaited = request.method != b"HEAD" and upstream.more_within(
                _MAX_ERROR_BYTES - len(body)
            )
            if status == 500 and awaited:
                self._held = body
                return
            self._held = b""
            dead = status == 500 and DEAD in body
            if dead or status in _RETRY_STATUS:
                self._blame("engine" if dead else "status")
                if self._may_retry():
                    self._move(Outcome.UPSTREAM_5XX)
                    return
        if not body and upstream.heads_stream and request.method != b"HEAD":
            # Engines send a stream's head when they accept a request, long before its first token:
            # held back, it leaves the way to another replica open.
            return
        if self.relay is not None:
            self._go_on(self.relay, upstream, body)
            return
        if (status == 404 or status == 400 or self.seek is not None) and request.method != b"HEAD":
            first = read_first(self, upstream, body)
            if first is None:
                return
            body = first
        self.status = status
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

    def _go_on(self, relay: Relay, upstream: UpstreamConnection, body: bytes) -> None:
        """The client has a stream's head from a replica tried before."""
        upstream.relay = relay
        self.paused = False
        if self.client.paused:
            self.pause()
        if not relay.go_on(upstream, body):
            self._cut_off(Outcome.BAD_RESPONSE, None, f"answered {upstream.status}", False)

    def switched(self, rest: bytes) -> None:
        """The replica has switched protocols, and sent this behind its head."""
        upstream = self.upstream
        assert upstream is not None
        self.status = 101
        self.tunnel = True
        self.free_body()
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
        self.client.exchange_ended(self.request.keep_alive)

    def failed_first(self) -> bool:
        """The replica's stream begins with an error. Whether the request went elsewhere."""
        assert self.relay is not None
        error = self.relay.error
        if error is None or error.of_request:
            return False
        self._blame("engine" if error.dead else "status")
        moves = self._may_retry()
        if moves:
            self._move(Outcome.STREAM_ERROR)
        return moves

    def _complete(self) -> None:
        """Book an answer that is whole."""
        placement, gateway, relay = self.placement, self.gateway, self.relay
        assert placement is not None
        assert relay is not None
        now = monotonic()
        status, error = self.status, relay.error
        self._book(placement, now, whole=error is None)
        outcome = Outcome.OK
        if error is not None and not error.of_request:
            outcome = Outcome.STREAM_ERROR
            self._blame("engine" if error.dead else "status")
        elif status >= 500 and not is_of_request(status):
            outcome = Outcome.UPSTREAM_5XX
            self._blame("status")
        elif error is None and status < 400:
            gateway.fleet.succeeded(placement.slot, now)
        else:
            # An error of the request's tells nothing of the replica.
            gateway.fleet.withdrawn(placement.slot)
        self._end(outcome)

    def _book(self, placement: Placement, now: float, *, whole: bool) -> None:
        """Tell the books that an answer is over, and what the engine reported."""
        gateway, relay = self.gateway, self.relay
        if self.prompt is None:
            gateway.balancer.finished(placement, now)
            return
        usage = relay.usage() if relay is not None and self.status == 200 else None
        if usage is None:
            gateway.placer.finished(placement, now)
            return
        self.usage = usage
        cached = usage.cached_tokens
        if self.prompt.several and cached > placement.held_tokens:
            cached = -1  # what the first of several answers computed
        # The length of an answer that was cut short says nothing of the model's answers.
        output = usage.output_tokens if whole else 0
        gateway.placer.finished(placement, now, usage.prompt_tokens, output, cached)

    # -- failures

    def upstream_lost(self, exc: Exception | None) -> None:
        """The replica's connection has closed."""
        upstream, self.upstream = self.upstream, None
        assert upstream is not None
        if self.tunnel:
            self._settle()
            self._end(Outcome.OK)
            self.client.close()
        elif self.relay is not None and self.relay.ended:
            self._finish(upstream)
        elif self.relay is not None and upstream.until_close and exc is None:
            self._complete()
            self.client.exchange_ended(self.request.keep_alive)
        elif self._bound and is_local(exc):
            what = f"could not be read ({exc})"
            self._cut_off(Outcome.OVERLOADED, None, what, upstream.in_chunk)
        elif self._bound:
            what = "closed its connection mid-answer"
            self._cut_off(Outcome.DIED_MID_STREAM, "died", what, upstream.in_chunk)
        elif upstream.reused and not upstream.touched:
            # It was closed while idle, which crossed with our request: no fault of the replica's.
            connect(self)
        elif is_local(exc):
            self.attempt_failed(503, Outcome.OVERLOADED, None, f"could not be read ({exc})")
        else:
            what = "closed its connection without an answer"
            self.attempt_failed(502, Outcome.DIED_BEFORE_HEAD, "died", what)

    def broken(self, why: str) -> None:
        """What the replica sends is not HTTP."""
        if self._bound:
            # How far it was is not known, so that the client may have a part of a chunk.
            self._cut_off(Outcome.BAD_RESPONSE, "died", why, in_chunk=True)
        else:
            self.attempt_failed(502, Outcome.BAD_RESPONSE, "died", why)

    def timed_out(self) -> None:
        """Nothing has come for longer than the settings allow. Called by the sweep."""
        upstream, relay = self.upstream, self.relay
        assert upstream is not None
        if relay is not None and relay.ended:
            self._drop_upstream()
            self._finish(upstream)
        elif self._bound:
            what = "has been silent for too long"
            self._cut_off(Outcome.TIMEOUT_SILENCE, "silent", what, upstream.in_chunk)
        else:
            # An engine that lives may be at work on it: another would double the load.
            what = "did not answer in time"
            self.attempt_failed(
                504, Outcome.TIMEOUT_FIRST_BYTE, "silent", what, retry=self._is_out()
            )

    def client_stalled(self) -> None:
        """The client has taken no byte for too long. Called by the sweep."""
        self.client.exchange = None
        self.client.transport.abort()
        self._abandon(Outcome.CLIENT_SLOW)

    def client_gone(self) -> None:
        """Nobody waits for the answer: stop the engine's work on it."""
        if self.relay is not None and self.relay.ended:
            # Clients leave at the API's end of an answer, before HTTP's.
            self._drop_upstream()
            self._complete()
        elif not self.tunnel:
            # A tunnel ends with its other side, which has been closed.
            self._abandon(Outcome.CLIENT_GONE)

    def crashed(self, exc: Exception) -> None:
        """The router itself has failed on this request: keep the books right, and say so."""
        log.error("request %s failed", self.request.request_id.decode(), exc_info=exc)
        if self.done or (self.relay is not None and self.relay.head_sent):
            self.client.transport.abort()
        else:
            self._settle()
            self._drop_upstream()
            self.refuse(500, "the router failed on this request", Outcome.INTERNAL)

    def attempt_failed(
        self,
        status: int,
        outcome: str,
        reason: FaultReason | None,
        what: str,
        *,
        retry: bool = True,
    ) -> None:
        """The replica chosen will not answer; nothing has been sent to the client yet.

        reason: None where the router is to blame, and no replica.
        """
        assert self.replica is not None
        self._failure = Failure(status, outcome, f"replica {self.replica.name} {what}")
        self._blame(reason)
        if retry and self._may_retry():
            self._move(outcome)
        else:
            self._take_back(outcome)
            self.give_up()

    def _blame(self, reason: FaultReason | None) -> None:
        """Tell the fleet that the replica failed, or, without a reason, that nothing was learned of
        it. Once for each attempt."""
        assert self.placement is not None
        if self._blamed:
            return
        self._blamed = True
        if reason is None:
            self.gateway.fleet.withdrawn(self.placement.slot)
        else:
            self.gateway.fleet.failed(self.placement.slot, reason, monotonic())

    def _take_back(self, outcome: str) -> None:
        """Take the attempt out of the books."""
        gateway, replica, placement = self.gateway, self.replica, self.placement
        assert replica is not None
        assert placement is not None
        gateway.placer.failed(placement, monotonic())
        if outcome != Outcome.OVERLOADED:  # which is of the router alone
            gateway.telemetry.attempt_failed(replica.name, outcome)
        self._drop_upstream()

    def _move(self, outcome: str) -> None:
        """Send the request to another replica."""
        self._take_back(outcome)
        self._held = b""
        self.retries += 1
        if self.relay is not None and not self.relay.head_sent:
            self.relay = None
        self.place()

    @property
    def _bound(self) -> bool:
        """The client has got a part of this replica's answer, which no other can go on with."""
        return self.relay is not None and not self.relay.opening

    def _is_out(self) -> bool:
        """Whether the replica chosen gets no more requests, other than as a last resort."""
        assert self.placement is not None
        return not self.gateway.fleet.usable >> self.placement.slot & 1

    def _may_retry(self) -> bool:
        gateway = self.gateway
        if self.retries >= gateway.settings.retries or self.request.upgrade:
            return False
        fleet = gateway.fleet
        passed_on = self.seek is not None and self.seek.passed_on
        serving = fleet.usable if passed_on else fleet.serving(self.model)
        if not serving & fleet.usable & ~self.tried:
            return False
        # What a replica had in flight when it went out can be moved only once: it gets no more.
        return gateway.retry_budget.take(free=self._is_out())

    @property
    def failed(self) -> bool:
        """An attempt has failed."""
        return self._failure is not None

    def give_up(self) -> None:
        """Tell of the last attempt that failed."""
        failure = self._failure
        assert failure is not None
        if self.relay is not None and self.relay.head_sent:
            self._break_off(failure.message, failure.outcome, in_chunk=False)
        else:
            self.refuse(failure.status, failure.message, failure.outcome)

    def set_aside(self) -> None:
        """The replica's answer is whole, no failure, and not for the client."""
        gateway, placement, upstream = self.gateway, self.placement, self.upstream
        assert placement is not None
        assert upstream is not None
        now = monotonic()
        self.upstream = None
        upstream.release()
        gateway.placer.failed(placement, now)
        gateway.fleet.succeeded(placement.slot, now)

    def _cut_off(self, outcome: str, reason: FaultReason | None, what: str, in_chunk: bool) -> None:
        """The client has a part of the answer, and the replica sends no more of it."""
        replica, relay = self.replica, self.relay
        assert replica is not None
        self._blame(reason)
        if self.prompt is not None and relay is not None:
            self.usage = relay.usage()
        self._take_back(outcome)
        self._break_off(f"replica {replica.name} {what}", outcome, in_chunk=in_chunk)

    def _break_off(self, message: str, outcome: str, *, in_chunk: bool) -> None:
        """Tell the client that no more will come, never as a normal end."""
        assert self.relay is not None
        reset = self.relay.break_off(message, in_chunk)
        self._end(outcome)
        if reset:
            self.client.exchange = None
            self.client.reset()
        else:
            # Without the last chunk, or short of its length, the body is visibly cut off.
            self.client.exchange_ended(keep_alive=False)

    def _finish(self, upstream: UpstreamConnection) -> None:
        """The API's end of the answer has come, HTTP's has not and will not."""
        assert self.relay is not None
        whole = self.relay.finish(upstream.in_chunk)
        self._complete()
        self.client.exchange_ended(whole and self.request.keep_alive)

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
        param: str | None = None,
        kind: str = "",
    ) -> None:
        """Answer with an error in the API's form."""
        body = error_body(self.request.rule.form, status, message, param, kind)
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
                is_http10=request.is_http10,
                head_only=request.method == b"HEAD",
                extra=extra + self.gateway.allow_origin,
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
        if self._bound:
            self._book(placement, now, whole=False)
        else:
            gateway.placer.failed(placement, now)
        if 0 < self.status < 400:
            gateway.fleet.succeeded(placement.slot, now)
        else:
            # A trial that ended like this proved nothing.
            gateway.fleet.withdrawn(placement.slot)

    def _end(self, outcome: str) -> None:
        """Everything is over: tell what happened. Called once."""
        self.done = True
        self.free_body()
        gateway = self.gateway
        gateway.exchanges.discard(self)
        try:
            gateway.ended(self, outcome)
        except Exception:
            log.exception("the end of request %s was not told", self.request.request_id.decode())
        # They know each other: break the circle.
        self.relay = None

    def free_body(self) -> None:
        """The client gets what no other replica can go on with: there is nothing to send again."""
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
