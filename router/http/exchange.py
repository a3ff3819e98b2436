"""One request and its answer: choose a replica, send, and tell what came of it.

An exchange is a state machine driven by two connections, the client's and the replica's. Until the
first event of an answer has gone to the client it may move to another replica; after that, a
failure is told as one.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from router.descriptors import is_local
from router.http import admission, first_leg, overflow
from router.http import seek as search
from router.http.choosing import Choosing
from router.http.events import DEAD
from router.http.local_reply import Reply, error_reply, refusal_reply, whole
from router.http.relay import Relay
from router.http.routes import FORWARDED, Form, Treatment
from router.http.state import OPENING, OVER, RELAYING, SENT, TUNNEL, WAITING
from router.http.tunnel import switch, switching_head
from router.http.upstream import Failure, UpstreamConnection
from router.overflow.target import WHYS
from router.prompt.billing import without_billing
from router.telemetry.record import Outcome
from router.tenants.authenticator import Peer
from router.tracing.context import HEADER as TRACEPARENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.fleet.fleet import FaultReason
    from router.http.gateway import Gateway
    from router.http.request import Request
    from router.prompt import Prompt
    from router.queue.departures import Quote
    from router.queue.ticket import Refusal
    from router.scheduling.placer import Placement

log = logging.getLogger(__name__)

_RETRY_STATUS = frozenset((502, 503, 504))
_BODILESS = frozenset((204, 304))
# A 500 is read whole before it is passed on, where it is as small as an engine's.
_MAX_ERROR_BYTES = 16 * 1024


class Client(Peer, Protocol):
    """The client's connection."""

    transport: asyncio.Transport
    exchange: Exchange | None
    paused: bool
    """It takes no more just now."""

    def exchange_ended(self, keep_alive: bool) -> None:
        """The answer has been handed to the transport."""

    def early(self) -> bytes:
        """What was sent before a switch of protocols was confirmed."""

    def close(self) -> None:
        """Send what is still to be sent, then close."""

    def reset(self) -> None:
        """Close so that it is not taken for an end."""


class Exchange(Choosing):
    """The state of one request; see the module's text."""

    __slots__ = (
        "_held",
        "client",
        "idle_ticks",
        "paused",
        "spill",
        "spilled",
        "unsent",
        "usage_splice_at",
    )

    def __init__(self, gateway: Gateway, client: Client, request: Request) -> None:
        super().__init__(gateway, request)
        self.client = client
        self.usage_splice_at = -1
        """Where in the body the request for usage goes; -1 when the router makes none."""
        self._held = b""
        """What has come of an error's body that is not passed on yet."""
        self.spill: overflow.OverflowLeg | None = None
        """Its way outside of the fleet, while it is on one."""
        self.spilled = False
        """It was on one: a second time there is none."""
        self.paused = False
        """The client is slow: the replica is not read."""
        self.idle_ticks = 0
        """Sweeps since something came from the replica, or while paused went to the client."""
        self.unsent = 0
        """While paused: bytes that waited for the client at the last sweep."""

    # -- choosing

    def start(self) -> None:
        """Find out who sends it, where that matters, and do what its path asks for."""
        gateway, request = self.gateway, self.request
        gateway.retry_budget.earn()
        if gateway.tracer is not None and request.rule.treatment in FORWARDED:
            self.trace = gateway.tracer.begin(request.take_header(TRACEPARENT))
        if gateway.tenants is None or admission.identified(self):
            self.read()

    def read(self) -> None:
        """Read the body as far as the path asks for it."""
        reply = self.read_body()
        if reply is not None:
            self.reply(reply)
            return
        gateway, request, prompt = self.gateway, self.request, self.prompt
        rule = request.rule
        if rule.treatment is Treatment.MODELS:
            self.seek = search.Seek()
        # Does one replica keep what is asked for, or will it keep the answer?
        if rule.keeps:
            named = search.name_in(request.target) if prompt is None else prompt.follows
            self.seek = search.seek_of(named, self.identity)
        if prompt is not None and gateway.asks_usage and not request.is_http10:
            self.usage_splice_at = prompt.usage_offset
        if self.identity is None or admission.admitted(self, self.identity):
            self.prepare()

    def refused(self, refusal: Refusal) -> None:
        """The queue does not send it."""
        nobody = refusal.why == "no_replica"
        if self.relay is not None and self.relay.head_sent:
            message = "no other replica could go on with the answer in time"
            outcome = Outcome.NO_REPLICA if nobody else Outcome.OVERLOADED
            self.break_off(message, outcome, in_chunk=False)
        elif refusal.why in WHYS and self._spills(refusal.why, lambda: self.refused(refusal)):
            return
        elif nobody and self.failure is not None:
            self.give_up()
        elif nobody:
            serving = self.gateway.fleet.serving(self.record.model)
            self.reply(search.nobody(self, self.seek or search.Seek(), serving))
        else:
            self.reply(refusal_reply(self.request.rule.form, refusal))

    def nobody_left(self, seek: search.Seek, serving: int) -> None:
        """There is nobody to ask, or nobody else."""
        if self.failure is not None and not seek.holder:
            self.give_up()
        else:
            super().nobody_left(seek, serving)

    def overflows(self, serving: int) -> bool:
        """No replica is usable for it: whether it goes to an overflow target."""
        fleet, model = self.gateway.fleet, self.record.model
        if not serving and fleet.models_known and not fleet.may_come(model):
            return False  # no model of this fleet: its answer is 404
        return self._spills("no_replica", self.place)

    def quote(self) -> Quote | None:
        """What it takes to answer it at an overflow target."""
        if self.spilled or self.tried or (self.seek is not None and self.seek.holder):
            return None
        return overflow.quote(self)

    def leaves(self, why: str) -> bool:
        """The queue has it leave, for its own sake or another's. If nobody takes it, it is placed
        as if it had not left."""
        ticket = self.ticket
        left = self._spills(why, self.place)
        if left and why == "coldest" and ticket is not None:
            ticket.limit = 0.0  # it would have been in time: if it comes back, it is not refused
        return left

    def _spills(self, why: str, back: Callable[[], None]) -> bool:
        """Whether it goes to an overflow target. back: called if none has taken it."""
        if self.gateway.overflow is None or self.spilled:
            return False
        self.spilled = overflow.begins(self, why, back)
        return self.spilled

    def diagnose(self, prompt: Prompt, text: bytes) -> None:
        """Find where the prompt parts from the one before. What left the fleet is in no cache."""
        if self.spill is None:
            super().diagnose(prompt, text)

    def settle_answer(self) -> str:
        """The answer is whole. Returns the request's outcome."""
        return super().settle_answer() if self.spill is None else self.spill.settle_answer()

    def end(self, outcome: str) -> None:
        """Everything is over: tell what happened. Called once."""
        if self.spill is not None:
            self.spill.over()
        super().end(outcome)
        self.spill = None

    def send_to(self, placement: Placement) -> None:
        """Send it to the replica where it was placed."""
        gateway, slot = self.gateway, placement.slot
        self.state = WAITING
        self.placement = placement
        self._blamed = False
        self.replica = replica = gateway.fleet.replicas[slot]
        assert replica is not None
        self.tried |= replica.bits
        if gateway.disaggregation is not None and first_leg.begins(self, gateway.disaggregation):
            return
        self.deliver()

    def deliver(self) -> None:
        """Send it over an open connection, which takes it at once, or over a new one."""
        assert self.placement is not None
        upstream = self.gateway.pools[self.placement.slot].take()
        if upstream is not None:
            self._send(upstream)
        else:
            self._connect()

    def _deliver_anew(self) -> None:
        """Send it to the same replica again, which could not fetch another's blocks."""
        self.drop_upstream()
        if self.relay is not None and not self.relay.head_sent:
            self.relay = None
        self.state = WAITING
        self.deliver()

    def _connect(self) -> None:
        """Send once there is a new connection."""
        self.state = WAITING  # it was sent where a connection was closed under it
        self.connecting = self.gateway.spawn(self._connect_and_send())

    async def _connect_and_send(self) -> None:
        assert self.placement is not None
        try:
            made = await self.gateway.connect(self.placement.slot)
        except Exception as exc:
            self.crashed(exc)
            return
        finally:
            self.connecting = None
        if isinstance(made, Failure):
            self._attempt_failed(made)
        else:
            self._send(made)

    def _send(self, upstream: UpstreamConnection) -> None:
        assert self.replica is not None
        self.state = SENT
        self.upstream = upstream
        self.idle_ticks = 0
        if not self.replica.kind.drops_billing_line and self.request.rule.form is Form.ANTHROPIC:
            self.request.body = without_billing(self.request.body)
        if self.trace is not None:
            if self.tried != self.replica.bits:  # an attempt before has put one there
                self.request.take_header(TRACEPARENT)
            self.request.headers += (TRACEPARENT, self.trace.attempt(self.replica.name))
        if self.leg is not None and self.leg.ready:
            self.leg.hand_over(upstream, self.replica, self.usage_splice_at)
        else:
            upstream.send(self, self.request, self.replica, self.usage_splice_at)
        record = self.record
        if record.overhead < 0.0:
            record.overhead = monotonic() - self.request.started

    # -- the replica's answer

    def respond(self, upstream: UpstreamConnection, body: bytes) -> None:
        """The head of the answer has come, and this much of its body."""
        request, status = self.request, upstream.status
        head_only = request.method == b"HEAD"
        if self.leg is not None and status >= 500 and self.leg.not_loaded():
            self._deliver_anew()
            return
        # An error of the replica's may send the request to another one, which takes the whole body
        # of a 500: there an engine that is dead says so.
        if status >= 500:
            body = self._held + body
            awaited = not head_only and upstream.more_within(_MAX_ERROR_BYTES - len(body))
            if status == 500 and awaited:
                self._held = body
                return
            self._held = b""
            dead = status == 500 and DEAD in body
            if dead or status in _RETRY_STATUS:
                self.blame("engine" if dead else "status")
                if self._may_retry():
                    self._move(Outcome.UPSTREAM_5XX)
                    return
        # Engines send a stream's head when they accept a request, long before its first token: held
        # back, it leaves the way to another replica open.
        asked = self.diagnosis is not None and self.diagnosis.field
        if (
            not body
            and not head_only
            and (upstream.heads_stream or (asked and not upstream.complete))
        ):
            return
        # The client has a stream's head from a replica tried before.
        if self.relay is not None:
            self._go_on(self.relay, upstream, body)
            return
        # A replica that lacks the model, or what is asked for, may be the wrong one to ask.
        if (status == 404 or status == 400 or self.seek is not None) and not head_only:
            self.seek = seek = self.seek or search.Seek()
            found = search.read_first(self, seek, upstream, body)
            if isinstance(found, search.Step):
                if found is search.Step.ASK_ELSEWHERE:
                    self.set_aside()
                    self.place()
                return
            if isinstance(found, Reply):
                self.set_aside()
                self.reply(found)
                return
            body = found
        # It is the client's.
        self.record.status = status
        if self.gateway.closing:
            request.keep_alive = False
        self.relay = relay = Relay(self, upstream, self.client.transport)
        self._relay_begins(relay, upstream)
        if asked and not head_only:
            self.tell_diagnosis(relay, upstream)
        if head_only:
            # The parser waits for a body that does not come; the connection cannot be used on.
            upstream.complete = True
            upstream.keep_alive = False
            body = b""
        elif status in _BODILESS:
            body = b""
        relay.begin(body)

    def _go_on(self, relay: Relay, upstream: UpstreamConnection, body: bytes) -> None:
        """Another replica's stream follows what the client got of the last one's."""
        follows = relay.go_on(upstream)
        self.paused = False
        self._relay_begins(relay, upstream)
        if self.diagnosis is not None and self.diagnosis.field:
            self.tell_diagnosis(relay, upstream)
        if not follows:
            self._cut_off(Outcome.BAD_RESPONSE, None, f"answered {upstream.status}", False)
        elif body:
            relay.feed(body)

    def _relay_begins(self, relay: Relay, upstream: UpstreamConnection) -> None:
        self.state = OPENING if relay.opening else RELAYING
        upstream.relay = relay
        if self.client.paused:
            self.pause()

    def switched(self, rest: bytes) -> None:
        """The replica has switched protocols, and sent this behind its head."""
        upstream, client, request = self.upstream, self.client, self.request
        assert upstream is not None
        if not request.upgrade:
            self.broken("switched protocols unasked")
            return
        self.record.status = 101
        self.state = TUNNEL
        head = switching_head(upstream.headers, request.upgrade)
        assert isinstance(client, asyncio.Protocol)
        switch(self, client, client.transport, upstream, head + rest)
        early = client.early()
        if early:
            upstream.transport.write(early)

    def relaying(self) -> None:
        """The client gets what no other replica can go on with: there is nothing to send again."""
        self.state = RELAYING
        if self.request.body_size:
            self.free_body()

    def first_token(self, now: float) -> None:
        """The first token has come."""
        assert self.placement is not None
        self.placement.first_token(now)
        if self.leg is not None:
            self.leg.decoding(now)
        if self.ticket is not None:
            self.gateway.queue.queue.first_token(self.ticket, now)

    def answered(self) -> None:
        """The replica's answer is whole and has been handed to the client's transport."""
        upstream, self.upstream = self.upstream, None
        assert upstream is not None
        upstream.release()
        self.end(self.settle_answer())
        self.client.exchange_ended(self.request.keep_alive)

    def failed_first(self) -> bool:
        """The replica's stream begins with an error. Whether the request went elsewhere."""
        assert self.relay is not None
        error = self.relay.error
        if error is None or error.of_request:
            return False
        if not error.dead and self.leg is not None and self.leg.not_loaded():
            self._deliver_anew()
            return True
        self.blame("engine" if error.dead else "status")
        moves = self._may_retry()
        if moves:
            self._move(Outcome.STREAM_ERROR)
        return moves

    # -- failures

    def upstream_lost(self, exc: Exception | None) -> None:
        """The replica's connection has closed."""
        upstream, self.upstream = self.upstream, None
        assert upstream is not None
        if self.state is TUNNEL:
            self.settle_unfinished()
            self.end(Outcome.OK)
            self.client.close()
        elif self.relay is not None and self.relay.ended:
            self.finish(upstream)
        elif self.relay is not None and upstream.until_close and exc is None:
            self.end(self.settle_answer())
            self.client.exchange_ended(self.request.keep_alive)
        elif self.state is RELAYING and is_local(exc):
            what = f"could not be read ({exc})"
            self._cut_off(Outcome.OVERLOADED, None, what, upstream.in_chunk)
        elif self.state is RELAYING:
            what = "closed its connection mid-answer"
            self._cut_off(Outcome.DIED_MID_STREAM, "died", what, upstream.in_chunk)
        elif upstream.reused and not upstream.touched:
            # It was closed while idle, which crossed with our request: no fault of the replica's.
            self._connect()
        elif is_local(exc):
            what = f"could not be read ({exc})"
            self._attempt_failed(Failure(503, Outcome.OVERLOADED, None, what))
        else:
            what = "closed its connection without an answer"
            self._attempt_failed(Failure(502, Outcome.DIED_BEFORE_HEAD, "died", what))

    def broken(self, why: str) -> None:
        """What the replica sends is not HTTP."""
        if self.state is RELAYING:
            # How far it was is not known, so that the client may have a part of a chunk.
            self._cut_off(Outcome.BAD_RESPONSE, "died", why, in_chunk=True)
        else:
            self._attempt_failed(Failure(502, Outcome.BAD_RESPONSE, "died", why))

    def timed_out(self) -> None:
        """Nothing has come for longer than the settings allow. Called by the sweep."""
        if self.spill is not None:
            self.spill.timed_out()
            return
        upstream, relay = self.upstream, self.relay
        assert upstream is not None
        if relay is not None and relay.ended:
            self.drop_upstream()
            self.finish(upstream)
        elif self.state is RELAYING:
            what = "has been silent for too long"
            self._cut_off(Outcome.TIMEOUT_SILENCE, "silent", what, upstream.in_chunk)
        elif self.leg is not None and self.leg.fetching and self.leg.not_loaded():
            self._deliver_anew()
        else:
            # An engine that lives may be at work on it: another would double the load.
            what = "did not answer in time"
            failure = Failure(504, Outcome.TIMEOUT_FIRST_BYTE, "silent", what)
            self._attempt_failed(failure, retry=self.is_out())

    def client_stalled(self) -> None:
        """The client has taken no byte for too long. Called by the sweep."""
        self.client.exchange = None
        self.client.transport.abort()
        self._abandon(Outcome.CLIENT_SLOW)

    def client_gone(self) -> None:
        """Nobody waits for the answer: stop the engine's work on it."""
        if self.relay is not None and self.relay.ended:
            # Clients leave at the API's end of an answer, before HTTP's.
            self.drop_upstream()
            self.end(self.settle_answer())
        elif self.state is not TUNNEL:
            # A tunnel ends with its other side, which has been closed.
            self._abandon(Outcome.CLIENT_GONE)

    def crashed(self, exc: Exception) -> None:
        """The router itself has failed on this request: keep the books right, and say so."""
        log.error("request %s failed", self.request.request_id.decode(), exc_info=exc)
        if self.state is OVER or (self.relay is not None and self.relay.head_sent):
            self.client.transport.abort()
        else:
            self.settle_unfinished()
            self.drop_upstream()
            self.refuse(500, "the router failed on this request", Outcome.INTERNAL)

    def _attempt_failed(self, failure: Failure, *, retry: bool = True) -> None:
        """The replica chosen will not answer; the client has got no event of its answer."""
        self.failure = failure
        self.blame(failure.reason)
        if retry and self._may_retry():
            self._move(failure.outcome)
        else:
            self.take_back(failure.outcome)
            if not (retry and self._fails_over(failure)):
                self.give_up()

    def _fails_over(self, failure: Failure) -> bool:
        """No replica is left after this: whether it goes to an overflow target."""
        if failure.outcome == Outcome.OVERLOADED:
            return False
        begun = self.relay is not None and self.relay.head_sent
        if begun or self._known(self.gateway.fleet.serving(self.record.model)):
            return False  # its client has a part of it; or it has had its retries
        self.relay = None
        return self._spills("no_replica", self.give_up)

    def _move(self, outcome: str) -> None:
        """Send the request to another replica."""
        self.take_back(outcome)
        self._held = b""
        self.record.retries += 1
        if self.relay is not None and not self.relay.head_sent:
            self.relay = None
        self.place()

    def _may_retry(self) -> bool:
        gateway = self.gateway
        if self.record.retries >= gateway.settings.retries or self.request.upgrade:
            return False
        fleet = gateway.fleet
        passed_on = self.seek is not None and self.seek.passed_on
        serving = fleet.serving("" if passed_on else self.record.model)
        if not serving & fleet.usable & ~self.tried:
            return False
        # What a replica had in flight when it went out can be moved only once: it gets no more.
        return gateway.retry_budget.take(free=self.is_out())

    def give_up(self) -> None:
        """Tell of the last attempt that failed."""
        failure, replica = self.failure, self.replica
        assert failure is not None
        assert replica is not None
        message = f"replica {replica.name} {failure.what}"
        if self.relay is not None and self.relay.head_sent:
            self.break_off(message, failure.outcome, in_chunk=False)
        else:
            self.refuse(failure.status, message, failure.outcome)

    def _cut_off(self, outcome: str, reason: FaultReason | None, what: str, in_chunk: bool) -> None:
        """The client has a part of the answer, and the replica sends no more of it."""
        replica, relay = self.replica, self.relay
        assert replica is not None
        self.blame(reason)
        if self.prompt is not None and relay is not None:
            self.usage = relay.usage()
        self.take_back(outcome)
        self.break_off(f"replica {replica.name} {what}", outcome, in_chunk=in_chunk)

    def break_off(self, message: str, outcome: str, *, in_chunk: bool) -> None:
        """Tell the client that no more will come, never as a normal end."""
        assert self.relay is not None
        reset = self.relay.break_off(message, in_chunk)
        self.end(outcome)
        if reset:
            self.client.exchange = None
            self.client.reset()
        else:
            # Without the last chunk, or short of its length, the body is visibly cut off.
            self.client.exchange_ended(keep_alive=False)

    def finish(self, upstream: UpstreamConnection) -> None:
        """The API's end of the answer has come, HTTP's has not and will not."""
        assert self.relay is not None
        whole = self.relay.finish(upstream.in_chunk)
        self.end(self.settle_answer())
        self.client.exchange_ended(whole and self.request.keep_alive)

    # -- answers of our own

    def refuse(
        self, status: int, message: str, outcome: str, *, param: str | None = None, kind: str = ""
    ) -> None:
        """Answer with an error in the API's form."""
        form = self.request.rule.form
        self.reply(error_reply(form, status, message, outcome, param=param, kind=kind))

    def reply(self, reply: Reply) -> None:
        """Answer from here, without a replica."""
        request, gateway = self.request, self.gateway
        self.record.status = reply.status
        self.record.bytes_out = len(reply.body)
        keep_alive = request.keep_alive and not gateway.closing
        limits = self.rate_headers()
        self.client.transport.write(whole(reply, request, gateway, limits, keep_alive=keep_alive))
        self.end(reply.outcome)
        self.client.exchange_ended(keep_alive)

    # -- the end

    def _abandon(self, outcome: str) -> None:
        self.stop_waiting()
        self.settle_unfinished()
        upstream = self.upstream
        if upstream is not None and self.leg is not None and self.leg.fetching:
            self.resume()
            self.upstream = None
            self.leg.leave(upstream)
        self.drop_upstream()
        self.end(outcome)

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
