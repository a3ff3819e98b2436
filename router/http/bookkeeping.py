"""The books of one request: what each attempt at a replica was charged, and the record of it all.

A placement is settled once: finished where there was an answer, failed where there was none. That
is what keeps a replica's load true. The fleet is told what each attempt says of the replica, and at
the end the one record is made that metrics, the access log and explanations read.
"""

from __future__ import annotations

import logging
from time import monotonic, time
from typing import TYPE_CHECKING

import msgspec

from router.http import admission
from router.http.diagnosed import attach
from router.http.events import is_of_request
from router.http.form import model_of
from router.http.local_reply import INVALID, Reply, error_reply, model_required, reply_locally
from router.http.request import MAX_KEY_CHARACTERS, short_key
from router.http.routes import Treatment, shown_path
from router.http.state import CHOOSING, OVER, QUEUED, RELAYING, WAITING, State
from router.prompt import PromptError, without_transfer
from router.scheduling.placer import INDEX_ROOM, Placement
from router.telemetry.ledger import deliverable
from router.telemetry.record import Finished, Outcome

if TYPE_CHECKING:
    from router.diagnosis import Diagnosis
    from router.fleet.fleet import FaultReason
    from router.fleet.replica import Replica
    from router.http.events import Usage
    from router.http.first_leg import FirstLeg
    from router.http.gateway import Gateway
    from router.http.relay import Relay
    from router.http.request import Request
    from router.http.upstream import UpstreamConnection
    from router.prompt import Prompt
    from router.queue.ticket import Ticket
    from router.tenants.accounts import Reservation
    from router.tenants.identity import Identity
    from router.tracing.trace import Trace
    from router.types import Chain

log = logging.getLogger(__name__)

# Modelled caches fuller than this evict, so that a missing block was probably evicted.
_NEARLY_FULL_SHARE = 0.95


class Bookkeeping:
    """What is known of a request, and what the books say of its current attempt."""

    __slots__ = (
        "_blamed",
        "common",
        "diagnosis",
        "gateway",
        "identity",
        "leg",
        "placement",
        "prompt",
        "record",
        "relay",
        "replica",
        "request",
        "reservation",
        "state",
        "ticket",
        "trace",
        "tried",
        "upstream",
        "usage",
    )

    def __init__(self, gateway: Gateway, request: Request) -> None:
        self.gateway = gateway
        self.request = request
        self.state: State = CHOOSING
        rule = request.rule
        self.record = Finished(
            request.request_id.decode(),
            rule.api,
            request.method.decode(),
            rule.path or shown_path(request.target),
        )
        """Filled in on the way, and handed over at the end."""
        self.identity: Identity | None = None
        """Who sends it; None without tenants."""
        self.reservation: Reservation | None = None
        """What it may use of limits; None where there are none."""
        self.trace: Trace | None = None
        """Its OpenTelemetry trace; None without tracing."""
        self.common: Chain | None = None
        """With isolation: its prompt's chain as it were without a salt."""
        self.leg: FirstLeg | None = None
        """Its prefill on another replica than the one that answers; None without any."""
        self.prompt: Prompt | None = None
        self.diagnosis: Diagnosis | None = None
        """Where its prompt parts from the one before; None where requests are not diagnosed."""
        self.tried = 0
        """Mask of the replicas that are not asked (again)."""
        self.ticket: Ticket | None = None
        """Its way through the queue; None where it is placed by load alone."""
        self.placement: Placement | None = None
        self.replica: Replica | None = None
        self.upstream: UpstreamConnection | None = None
        self.relay: Relay | None = None
        """The answer on its way to the client; None until its head has come, and at the end."""
        self.usage: Usage | None = None
        self._blamed = False
        """The fleet has been told that the replica chosen failed."""

    # -- what is asked

    def read_body(self, *, shown: bool = True) -> Reply | None:
        """Read the body as far as the path asks for it: its prompt, its model, its session.

        shown: all of the body is there. Returns the answer to a request that goes no further.
        """
        gateway, request, record = self.gateway, self.request, self.record
        rule, trusted = request.rule, gateway.settings.trust_kv_transfer
        prompt = None
        try:
            if rule.parse is not None and request.method == b"POST" and (shown or request.body):
                self.prompt = prompt = rule.parse(request.body, gateway.fleet.templates.models)
            if prompt is not None:
                record.model = prompt.model
                if prompt.transfer and not trusted:
                    request.body = without_transfer(request.body)
            elif rule.treatment is Treatment.BALANCE or rule.treatment is Treatment.PREFIX:
                if request.body:
                    record.model = model_of(request, trust=trusted)
            elif rule.treatment is not Treatment.MODELS or not gateway.asks_engine(request):
                return reply_locally(gateway, request, self.identity)
        except PromptError as exc:
            param = f"body.{exc.param}" if exc.param else "body"
            outcome = Outcome.BAD_REQUEST
            return error_reply(rule.form, 400, exc.message, outcome, param=param, kind=INVALID)
        if not record.model and request.body and rule.names_model and gateway.fleet.mixed:
            # Where all replicas have the same model, an engine takes its own.
            record.model = gateway.settings.default_model
            if not record.model:
                return model_required(gateway.fleet, rule.form)
        if prompt is not None:
            key = request.session_key.decode("latin-1") if request.session else prompt.key
            record.key = key if len(key) <= MAX_KEY_CHARACTERS else short_key(key)
            prompt.model, prompt.key = record.model, record.key
        return None

    # -- an attempt that failed

    def blame(self, reason: FaultReason | None) -> None:
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

    def take_back(self, outcome: str) -> None:
        """Take the attempt out of the books."""
        gateway, replica, placement = self.gateway, self.replica, self.placement
        assert replica is not None
        assert placement is not None
        placement.failed(monotonic())
        if self.leg is not None:
            self.leg.attempt_failed(outcome)
        if self.trace is not None:
            self.trace.attempt_failed(outcome)
        if outcome != Outcome.OVERLOADED:  # which is of the router alone
            gateway.telemetry.attempt_failed(replica.name, outcome)
        self.drop_upstream()

    def drop_upstream(self) -> None:
        """Close the connection, so that the engine stops its work."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.drop()

    def is_out(self) -> bool:
        """Whether the replica chosen gets no more requests, other than as a last resort."""
        assert self.placement is not None
        return not self.gateway.fleet.usable >> self.placement.slot & 1

    # -- an answer

    def set_aside(self) -> None:
        """The replica's answer is whole, no failure, and not for the client."""
        gateway, placement, upstream = self.gateway, self.placement, self.upstream
        assert placement is not None
        assert upstream is not None
        now = monotonic()
        self.upstream = None
        upstream.release()
        placement.failed(now)
        if self.trace is not None:
            self.trace.attempt_failed("")
        gateway.fleet.succeeded(placement.slot, now)

    def settle_answer(self) -> str:
        """The answer is whole. Returns the request's outcome."""
        placement, relay = self.placement, self.relay
        assert placement is not None
        assert relay is not None
        now = monotonic()
        status, error = self.record.status, relay.error
        self._finish_placement(placement, now, whole=error is None)
        if error is not None and not error.of_request:
            self.blame("engine" if error.dead else "status")
            return Outcome.STREAM_ERROR
        if status >= 500 and not is_of_request(status):
            self.blame("status")
            return Outcome.UPSTREAM_5XX
        if error is None and status < 400:
            self.gateway.fleet.succeeded(placement.slot, now)
        else:
            # An error of the request's tells nothing of the replica.
            self.gateway.fleet.withdrawn(placement.slot)
        return Outcome.OK

    def settle_unfinished(self) -> None:
        """Give back what an answer that will not be finished was charged."""
        placement, gateway = self.placement, self.gateway
        if placement is None or self.state is QUEUED:
            # It waits: an attempt before is settled, and what it is charged now the queue settles.
            return
        now = monotonic()
        if self.state is RELAYING:
            self._finish_placement(placement, now, whole=False)
        else:
            placement.failed(now)
        if 0 < self.record.status < 400:
            gateway.fleet.succeeded(placement.slot, now)
        else:
            # A trial that ended like this proved nothing.
            gateway.fleet.withdrawn(placement.slot)

    def _finish_placement(self, placement: Placement, now: float, *, whole: bool) -> None:
        """Tell the placer that an answer is over, and what the engine reported."""
        relay = self.relay
        usage = None
        if self.prompt is not None and relay is not None and self.record.status == 200:
            usage = relay.usage()
        if usage is None:
            placement.finished(now)
            if self.ticket is not None:
                self.gateway.queue.queue.ended(self.ticket, now)
            return
        replica = self.replica
        if replica is not None and usage.cached_tokens >= 0:
            replica.reports_cached = True
        elif replica is not None and replica.reports_cached and replica.kind.leaves_zero_out:
            # It tells cached tokens, and would have here if there had been any.
            usage = msgspec.structs.replace(usage, cached_tokens=0)
        self.usage = usage
        cached = usage.cached_tokens
        if placement.prompt.several and cached > placement.held_tokens:
            cached = -1  # what the first of several answers computed
        # The length of an answer that was cut short says nothing of the model's answers.
        output = usage.output_tokens if whole else 0
        placement.finished(now, usage.prompt_tokens, output, cached)
        if self.ticket is not None:
            self.gateway.queue.queue.ended(self.ticket, now, usage.output_tokens)

    @property
    def is_over(self) -> bool:
        """Nobody waits for it any more."""
        return self.state is OVER

    def waits(self) -> None:
        """It goes on later."""
        self.state = WAITING

    def rate_headers(self) -> bytes:
        """How the client's limits stand, for its library, as lines of a head; empty without any."""
        return b"" if self.identity is None else admission.rate_headers(self, self.identity)

    # -- the diagnosis

    def diagnose(self, prompt: Prompt, text: bytes) -> None:
        """Find where the prompt parts from the one before. Called once it is on its way."""
        diagnoser, request = self.gateway.diagnoser, self.request
        if (
            diagnoser is not None
            and text
            and self.state is not OVER
            and diagnoser.takes(prompt, self.record.key, request.started)
        ):
            self.diagnosis = diagnoser.asked(
                prompt,
                text,
                request.headers,
                request.session_key,
                self.record.tenant,
                request.rule.api,
            )

    def tell_diagnosis(self, relay: Relay, upstream: UpstreamConnection) -> None:
        """The client asks for it in the fields of its API."""
        assert self.diagnosis is not None
        assert self.replica is not None
        attach(relay, upstream, self.diagnosis, self.replica.block_tokens)

    def diagnosis_headers(self) -> list[bytes]:
        """What is foreseen to be computed again, and why: name, value, ..."""
        diagnoser, placement = self.gateway.diagnoser, self.placement
        if diagnoser is None or self.diagnosis is None or placement is None:
            return []
        assert self.replica is not None
        return diagnoser.foreseen(
            self.diagnosis,
            placement.tokens,
            placement.available_tokens,
            placement.held_tokens,
            self.replica.block_tokens,
        )

    # -- the end

    def end(self, outcome: str) -> None:
        """Everything is over: tell what happened. Called once."""
        self.state = OVER
        if self.leg is not None:
            self.leg.over()
        if self.ticket is not None:
            self.gateway.queue.queue.gone(self.ticket, monotonic())
        if self.request.body_size:
            self.free_body()
        try:
            if self.identity is not None:
                left = outcome in (Outcome.CLIENT_GONE, Outcome.CLIENT_SLOW)
                admission.settle(self, self.identity, left=left)
            self._close_record(outcome)
        except Exception:
            log.exception("the end of request %s was not told", self.request.request_id.decode())
        # They know each other: break the circle.
        self.relay = self.ticket = self.leg = None

    def free_body(self) -> None:
        """There is nothing to send again."""
        request = self.request
        size = request.body_size
        self.gateway.live.body_bytes -= size
        self.record.bytes_in = size
        request.body_size = 0
        request.body = b""

    def _close_record(self, outcome: str) -> None:
        """The request is over: complete its record, and hand it over."""
        placement, replica, prompt, relay = self.placement, self.replica, self.prompt, self.relay
        gateway, record, started = self.gateway, self.record, self.request.started
        record.outcome = outcome
        record.duration = duration = monotonic() - started
        record.started = time() - duration
        if relay is not None:
            record.bytes_out = relay.bytes_out
        ticket = self.ticket
        if ticket is not None:
            record.back_in_time = ticket.back_in_time
            if ticket.was_parked or ticket.was_held:
                self._record_wait(ticket)
        chain = None
        if placement is not None and replica is not None:
            record.slot = placement.slot
            record.replica = replica.name
            record.reason = placement.reason
            if prompt is None:
                record.policy = "balance"
            else:
                chain = prompt.chain
                if prompt.stream:
                    record.stream = True
                    if relay is not None and relay.first_at:
                        record.ttft = relay.first_at - started
                self._record_reuse(placement, replica, prompt)
                if self.diagnosis is not None and gateway.diagnoser is not None:
                    gateway.diagnoser.ended(self.diagnosis, record, replica)
        if self.trace is not None and gateway.tracer is not None:
            gateway.tracer.end(self.trace, record)
        gateway.telemetry.observe(record)
        gateway.explain.add(record)
        gateway.access_log.add(record, chain, prompt.size if prompt is not None else 0)

    def _record_wait(self, ticket: Ticket) -> None:
        """How long it was in the queue, where, and behind what."""
        record = self.record
        sent = ticket.sent_at or ticket.at + record.duration
        record.queued = max(0.0, sent - ticket.at)
        places = ("door", ticket.was_parked), ("lane", ticket.was_held)
        record.waited_at = " ".join(place for place, was in places if was)
        record.priority = ticket.priority
        record.queue_ahead = ticket.ahead
        record.queue_expected = ticket.expected_wait
        record.queue_wanted = ticket.wanted_share

    def _record_reuse(self, placement: Placement, replica: Replica, prompt: Prompt) -> None:
        """What of the prompt was held, what was to be delivered, and what was."""
        gateway, record, usage = self.gateway, self.record, self.usage
        load, held, doubts = placement.load, placement.held_tokens, prompt.doubts
        leg = self.leg if self.leg is not None and self.leg.used else None
        if leg is not None:
            held = leg.held_tokens  # the decode replica's own were not needed
        record.policy = gateway.settings.policy
        record.considered = placement.considered
        record.adapter = placement.adapter
        record.uncached_tokens = placement.uncached
        record.available = max(placement.available_tokens, held)
        record.chosen = record.predicted = held
        if placement.behind is not None and leg is None:
            record.tiers = placement.placer.prices.parts(placement.slot, placement.behind)
        record.cache_full = load.cache_used * INDEX_ROOM >= load.cache_tokens * _NEARLY_FULL_SHARE
        if usage is not None:
            record.prompt_tokens = tokens = usage.prompt_tokens
            record.output_tokens = usage.output_tokens
            # To the decode replica all that it was handed is cached.
            delivered = usage.cached_tokens if leg is None else leg.cached_tokens
            record.delivered = delivered
            # The prompt's tokens are known now: its own bytes for a token are better than what is
            # usual for the model.
            exactly = tokens / placement.tokens if tokens else 1.0
            held *= exactly
            record.available *= exactly
            record.chosen = held
            record.predicted = predicted = deliverable(held, tokens, replica.block_tokens)
            if prompt.several and delivered > predicted:
                # The other answers found what the first one computed: no surplus.
                record.delivered = int(predicted)
            if doubts is not None and tokens and delivered >= 0:
                size = prompt.size / tokens
                record.rendered_differently = doubts.explain(held * size, delivered * size)
        if doubts is not None and doubts.unknown:
            gateway.fleet.templates.unknown(record.model, doubts.unknown)
