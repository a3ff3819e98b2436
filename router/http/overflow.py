"""A request that the fleet cannot take, sent to a target outside of it.

The exchange stays the request's owner: it is told at the end by `back` when no target has taken the
request, and does then what it would have done without overflow. Nothing of a target's answer goes
to the client before it is known to be one: only 200 is relayed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from router.http import admission
from router.http.relay import Answered, Relay
from router.http.state import OPENING, RELAYING, SENT, WAITING, State
from router.http.upstream import Failure, UpstreamConnection
from router.prompt import NO_PROMPT, NOT_JSON
from router.queue.departures import Quote
from router.telemetry.record import Outcome
from router.tenants.accounts import Denial, Reservation

if TYPE_CHECKING:
    from router.fleet.replica import Replica
    from router.http.gateway import Gateway
    from router.http.request import Request
    from router.overflow.overflow import Overflow
    from router.overflow.target import Target
    from router.prompt import Prompt
    from router.queue.ticket import Ticket
    from router.scheduling.placer import Placement
    from router.telemetry.record import Finished
    from router.tenants.identity import Identity
    from router.tenants.ledger import Decision

log = logging.getLogger(__name__)

_PATHS: Final = {
    "/v1/chat/completions": True,
    "/v1/completions": True,
    "/v1/responses": True,
    "/v1/messages": True,
    "/v1/embeddings": False,
}
"""Path that may be sent out -> whether its answers have output tokens."""
_UNBOUNDED: Final = 4096
"""Output tokens that are reserved where the client bounds the answer by nothing."""
_OURS: Final = ("cache_salt", "kv_transfer_params", "priority")
"""Members of a body that are about this fleet, and that hosted APIs refuse."""
_SENT: Final = frozenset(
    (
        b"accept",
        b"anthropic-beta",
        b"anthropic-version",
        b"idempotency-key",
        b"openai-beta",
        b"user-agent",
        b"via",  # a request that goes in a circle is known by it
    )
)
"""Headers of the client's that leave the cluster. No others do: addresses, cookies, names of
tenants, traces and what gateways add stay here."""
_SHOWN: Final = frozenset(
    (
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"date",
        b"transfer-encoding",
    )
)
"""Headers of a target's answer that the client gets: others are about the account."""
_REFUSES_ALL: Final = frozenset((401, 402, 403, 429))
"""Statuses that tell of the key or of the account: one is enough for the breaker."""
_OF_REQUEST: Final = frozenset((400, 409, 413, 415, 422))
"""Statuses that tell nothing of the target."""

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_ASKS_USAGE: Final = msgspec.Raw(b'{"include_usage":true}')


class Client(Protocol):
    """The client's connection."""

    transport: asyncio.Transport
    paused: bool


class Owner(Answered, Protocol):
    """The exchange, as far as its overflow needs it."""

    gateway: Gateway
    record: Finished
    identity: Identity | None
    state: State
    relay: Relay | None
    upstream: UpstreamConnection | None
    connecting: asyncio.Task[None] | None
    idle_ticks: int
    spill: OverflowLeg | None

    @property
    def client(self) -> Client: ...
    def answered(self) -> None:
        """The answer is whole and has been handed to the client's transport."""

    def finish(self, upstream: UpstreamConnection) -> None:
        """The API's end of the answer has come, HTTP's has not and will not."""

    def break_off(self, message: str, outcome: str, *, in_chunk: bool) -> None:
        """Tell the client that no more will come."""

    def drop_upstream(self) -> None:
        """Close the connection."""

    def pause(self) -> None:
        """The client is slow."""

    def crashed(self, exc: Exception) -> None:
        """The router itself has failed on it."""


def _may_leave(owner: Owner) -> bool:
    """Whether a request is of those that go to targets at all, but for its body."""
    gateway, request, prompt = owner.gateway, owner.request, owner.prompt
    overflow, identity = gateway.overflow, owner.identity
    return not (
        overflow is None
        or gateway.closing
        or owner.record.model not in overflow.models
        or request.rule.path not in _PATHS
        or request.method != b"POST"
        or request.upgrade
        or (prompt is not None and prompt.follows)  # one engine has what it continues
        or (gateway.tenants is not None and (identity is None or not identity.overflow))
    )


def _tokens(owner: Owner) -> tuple[float, float]:
    """Tokens of its prompt, and of its answer at most."""
    # The same estimate as for tenants' limits.
    prompt, output = admission.estimate(owner)
    if _PATHS[owner.request.rule.path] and (owner.prompt is None or not owner.prompt.output_limit):
        output = max(output, _UNBOUNDED)
    return prompt, output


def quote(owner: Owner) -> Quote | None:
    """What it would cost at the target that would take it now; None where there is none."""
    overflow = owner.gateway.overflow
    if overflow is None or not _may_leave(owner):
        return None
    tokens = _tokens(owner)
    target = overflow.find(owner.record.model, tokens, (), monotonic())
    return Quote(target.cost(*tokens), tokens[0]) if target is not None else None


def begins(owner: Owner, why: str, back: Callable[[], None]) -> bool:
    """Whether the request goes to a target. back: does what is done without overflow, if none has
    taken it; called at most once, and never where this returns False."""
    if not _may_leave(owner):
        return False
    try:
        members = _decode(owner.request.body)
    except NOT_JSON:
        return False
    if bytes(members.get("background", b"false")).strip() not in (b"false", b"null"):
        return False  # its client asks here for the answer later
    return OverflowLeg(owner, why, back, members).begins()


class OverflowLeg:
    """One request on its way to targets. Implements ``router.http.upstream.Asker``, and is the
    answer's owner for the relay."""

    __slots__ = (
        "_asked",
        "_back",
        "_begun",
        "_came_from",
        "_cost",
        "_members",
        "_overflow",
        "_owner",
        "_paid",
        "_sent",
        "_target",
        "_tokens",
        "_told",
        "_whole",
        "_why",
        "placement",
        "prompt",
        "replica",
        "request",
        "reservation",
        "ticket",
        "usage_splice_at",
    )

    def __init__(
        self, owner: Owner, why: str, back: Callable[[], None], members: dict[str, msgspec.Raw]
    ) -> None:
        self._owner = owner
        self._why = why
        self._back = back
        self._members = members
        self._asked: list[Target] = []
        self._target: Target
        self._came_from: tuple[Placement | None, Replica | None] = owner.placement, owner.replica
        assert owner.gateway.overflow is not None
        self._overflow: Overflow = owner.gateway.overflow
        self._tokens = _tokens(owner)
        self._cost = 0.0
        """Money that is reserved at most."""
        self._paid: Reservation | asyncio.Future[Decision] | None = None
        """What is reserved, once that is decided."""
        self._begun = self._sent = self._told = self._whole = False
        # For the relay. It looks for usage where there is a prompt.
        self.request: Request = owner.request
        self.prompt: Prompt | None = owner.prompt or NO_PROMPT
        self.placement: Placement | None = None
        self.replica: Replica | None = None
        self.ticket: Ticket | None = owner.ticket
        self.reservation: Reservation | None = owner.reservation
        self.usage_splice_at = owner.usage_splice_at

    # -- to a target

    def begins(self) -> bool:
        """Send it to the first target that may take it. False where there is none."""
        if not self._choose():
            return False
        owner, gateway = self._owner, self._owner.gateway
        owner.spill = self
        owner.placement = owner.replica = None
        if owner.ticket is not None:
            gateway.queue.queue.left_for_elsewhere(owner.ticket, monotonic())
        wake = gateway.holding.wake
        if wake is not None and self._why == "no_replica":
            # It does not wait for a sleeping replica, but the next ones should find it awake.
            wake(owner.record.model)
        self._go()
        return True

    def _choose(self) -> bool:
        """Whether there is a target, and it has the money or others are asked for that."""
        owner, overflow = self._owner, self._overflow
        while True:
            target = overflow.find(owner.record.model, self._tokens, self._asked, monotonic())
            if target is None:
                return False
            self._target = target
            self._cost = target.cost(*self._tokens)
            self._sent = self._told = False
            decision = overflow.reserve(target, self._cost)
            if not isinstance(decision, Denial):
                self._paid = decision
                return True
            self._asked.append(target)

    def _go(self) -> None:
        """Its target is chosen: send it there, once the money for it is reserved."""
        if isinstance(self._paid, asyncio.Future):
            self._owner.state = WAITING
            self._paid.add_done_callback(self._decided)
            return
        self._target.begins(self._why, monotonic())
        self._begun = True
        self._deliver()

    def _decided(self, future: asyncio.Future[Decision]) -> None:
        """Whether the budget has room for it is known."""
        owner, decision = self._owner, future.result()
        if owner.spill is not self:  # its client has left
            if isinstance(decision, Reservation):
                self._overflow.settle(self._target, decision, 0.0)
            return
        try:
            if isinstance(decision, Reservation):
                self._paid = decision
                self._go()
            else:
                self._paid = None
                self._next()
        except Exception as exc:
            owner.crashed(exc)

    def _deliver(self) -> None:
        upstream = self._owner.gateway.overflow_pools[self._target.name].take()
        if upstream is not None:
            self._send(upstream)
        else:
            self._connect()

    def _connect(self) -> None:
        owner = self._owner
        owner.state = WAITING
        owner.connecting = owner.gateway.spawn(self._connect_and_send())

    async def _connect_and_send(self) -> None:
        owner, gateway = self._owner, self._owner.gateway
        pool = gateway.overflow_pools[self._target.name]
        try:
            made = await gateway.connect_to(pool, gateway.overflow_tls)
        except Exception as exc:
            owner.crashed(exc)
            return
        finally:
            owner.connecting = None
        if isinstance(made, Failure):
            self._failed(made.what, at_fault=made.reason is not None)
        else:
            self._send(made)

    def _send(self, upstream: UpstreamConnection) -> None:
        owner, spec = self._owner, self._target.spec
        owner.state = SENT
        owner.upstream = upstream
        owner.idle_ticks = 0
        self._sent = True
        request = self.request
        pairs = zip(request.headers[::2], request.headers[1::2], strict=True)
        headers = [part for pair in pairs if pair[0].lower() in _SENT for part in pair]
        headers += (b"content-type", b"application/json", *spec.key_header)
        asked = msgspec.structs.replace(
            request,
            target=request.rule.path.encode(),
            headers=headers,
            body=self._body(spec.models[owner.record.model]),
        )
        upstream.send(self, asked, self._target.endpoint, -1)
        record = owner.record
        if record.overhead < 0.0:
            record.overhead = monotonic() - request.started

    def _body(self, model: str) -> bytes:
        """The client's values as they came, with the model's name there."""
        members = {name: value for name, value in self._members.items() if name not in _OURS}
        members["model"] = msgspec.Raw(_encode(model))
        if self.usage_splice_at >= 0:
            # The relay takes the event out again that this asks for.
            members.setdefault("stream_options", _ASKS_USAGE)
        return _encode(members)

    # -- its answer

    def respond(self, upstream: UpstreamConnection, body: bytes) -> None:
        """The head of the answer has come, and this much of its body."""
        owner, status = self._owner, upstream.status
        if status != 200:
            at_once = status in _REFUSES_ALL
            at_fault = status not in _OF_REQUEST
            self._failed(f"answered {status}", at_fault=at_fault, at_once=at_once, free=True)
            return
        if not body and upstream.heads_stream:
            return  # an error may still follow, of which the client is not to know
        pairs = zip(upstream.headers[::2], upstream.headers[1::2], strict=True)
        upstream.headers = [part for pair in pairs if pair[0].lower() in _SHOWN for part in pair]
        upstream.headers += (b"x-warmroute-overflow", self._target.name.encode())
        upstream.has_request_id = upstream.has_buffering = False
        owner.record.status = status
        if owner.gateway.closing:
            self.request.keep_alive = False
        owner.relay = relay = Relay(self, upstream, owner.client.transport)
        owner.state = OPENING if relay.opening else RELAYING
        upstream.relay = relay
        if owner.client.paused:
            owner.pause()
        relay.begin(body)

    def switched(self, rest: bytes) -> None:
        """The target has switched protocols, which nobody asked for."""
        self.broken(f"switched protocols unasked ({len(rest)} bytes)")

    def broken(self, why: str) -> None:
        """What the target sends is not HTTP."""
        if self._passed_on:
            self._cut_off(why, Outcome.BAD_RESPONSE, in_chunk=True)
        else:
            self._failed(why)

    def upstream_lost(self, exc: Exception | None) -> None:
        """The target's connection has closed."""
        owner = self._owner
        upstream, owner.upstream = owner.upstream, None
        assert upstream is not None
        relay = owner.relay
        if relay is not None and relay.ended:
            owner.finish(upstream)
        elif relay is not None and upstream.until_close and exc is None:
            # There is nothing to release, but the rest is as for any whole answer.
            owner.upstream = upstream
            owner.answered()
        elif self._passed_on:
            what = "closed its connection mid-answer"
            self._cut_off(what, Outcome.DIED_MID_STREAM, in_chunk=upstream.in_chunk)
        elif upstream.reused and not upstream.touched:
            self._connect()  # closed while idle, which crossed with the request
        else:
            self._failed("closed its connection without an answer")

    def timed_out(self) -> None:
        """Nothing has come for longer than the settings allow."""
        owner = self._owner
        upstream, relay = owner.upstream, owner.relay
        assert upstream is not None
        if relay is not None and relay.ended:
            owner.drop_upstream()
            owner.finish(upstream)
        elif self._passed_on:
            what = "has been silent for too long"
            self._cut_off(what, Outcome.TIMEOUT_SILENCE, in_chunk=upstream.in_chunk)
        else:
            self._failed("did not answer in time")

    @property
    def _passed_on(self) -> bool:
        """The client has got a part of the answer."""
        relay = self._owner.relay
        return self._owner.state is RELAYING or (relay is not None and relay.head_sent)

    # -- for the relay

    def rate_headers(self) -> bytes:
        """How the client's limits stand, as lines of a head."""
        return self._owner.rate_headers()

    def diagnosis_headers(self) -> list[bytes]:
        """Nothing is foreseen of other people's caches."""
        return []

    def first_token(self, now: float) -> None:
        """The first token has come: the record takes it from the relay."""

    def failed_first(self) -> bool:
        """The stream begins with an error: nobody has seen it."""
        relay = self._owner.relay
        assert relay is not None
        if relay.head_sent:
            return False
        error = relay.error
        self._failed("began with an error", at_fault=error is None or not error.of_request)
        return True

    def relaying(self) -> None:
        """The client gets a part of this answer."""
        self._owner.relaying()

    def answered(self) -> None:
        """The answer is whole and has been handed to the client's transport."""
        self._owner.answered()

    # -- its end

    def settle_answer(self) -> str:
        """The answer is whole. Returns the request's outcome."""
        relay = self._owner.relay
        assert relay is not None
        error = relay.error
        self._whole = error is None
        if error is not None and not error.of_request:
            self._blame("broke off with an error", at_once=False)
            return Outcome.STREAM_ERROR
        self._told = True
        self._target.breaker.succeeded(monotonic())
        return Outcome.OK

    def over(self) -> None:
        """The request is over: settle the money, and tell it. Called once, by the owner's end."""
        owner, target = self._owner, self._target
        record, relay = owner.record, owner.relay
        if not self._begun:
            return  # the money for it was never decided on
        if not self._told:
            target.breaker.withdraw()
        cost = self._cost if self._sent else 0.0
        usage = relay.usage() if relay is not None else None
        if usage is not None:
            record.prompt_tokens = usage.prompt_tokens
            record.output_tokens = usage.output_tokens
            told = target.cost(usage.prompt_tokens, usage.output_tokens)
            # What broke off has cost more than was told of it; how much, nobody knows.
            cost = told if self._whole else max(cost, told)
        self._settle(cost)
        record.overflow, record.overflow_why, record.overflow_money = target.name, self._why, cost
        if owner.prompt is not None and owner.prompt.stream:
            record.stream = True
            if relay is not None and relay.first_at:
                record.ttft = relay.first_at - self.request.started

    def _cut_off(self, what: str, outcome: str, *, in_chunk: bool) -> None:
        self._blame(what, at_once=False)
        self._owner.drop_upstream()
        # Not by its address: that is nobody's business.
        message = f"the overflow target {self._target.name} broke off its answer"
        self._owner.break_off(message, outcome, in_chunk=in_chunk)

    def _blame(self, what: str, *, at_once: bool) -> None:
        self._told = True
        if self._target.breaker.failed(monotonic(), at_once):
            log.warning("overflow target %s %s: no requests go there for a while (%g s)",
                        self._target.name, what, self._target.breaker.cooldown)  # fmt: skip

    def _failed(
        self, what: str, *, at_fault: bool = True, at_once: bool = False, free: bool = False
    ) -> None:
        """The target does not answer it: the next one may, or it goes back. free: it costs
        nothing, since the target has said so."""
        target = self._target
        owner = self._owner
        if at_fault:
            self._blame(what, at_once=at_once)
        else:
            target.breaker.withdraw()
        log.info("request %s: overflow target %s %s",
                 self.request.request_id.decode(), target.name, what)  # fmt: skip
        target.failed += 1
        # One that was asked and fell silent may have been at work on it.
        self._settle(self._cost if self._sent and not free else 0.0)
        self._begun = False
        owner.drop_upstream()
        owner.relay = None
        owner.record.status = 0
        self._next()

    def _next(self) -> None:
        """The target does not take it: the next one may, or it goes back."""
        owner = self._owner
        self._asked.append(self._target)
        if self._choose():
            self._go()
            return
        owner.spill = None
        owner.placement, owner.replica = self._came_from
        self._back()

    def _settle(self, money: float) -> None:
        """What it has cost at its target."""
        paid, self._paid = self._paid, None
        if isinstance(paid, Reservation):
            self._overflow.settle(self._target, paid, money)
