"""The first leg of a request whose prefill and decode are apart.

Before the exchange sends a request to the replica that was chosen to answer it (D), a prefill
replica (P) computes the prompt, and tells where its KV blocks are. What D is sent says so too. P
that fails is replaced by another one, and at last D computes the prompt by itself.

P keeps the blocks until D has fetched them. When the client leaves in between, or D dies, a
throwaway request for one token makes a decode replica fetch them (release.py). Once D was sent the
params they are used up: blocks that P has given to others must not be read, so that another attempt
begins anew.
"""

from __future__ import annotations

import asyncio
import logging
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import msgspec

from router.disaggregation import bodies
from router.disaggregation.connector import NoHandOverError
from router.disaggregation.disaggregation import Disaggregation, Leg
from router.http.release import release
from router.http.side_request import Answer, Nobody, ask, with_body
from router.http.upstream import ASK_USAGE, Asker, Failure, UpstreamConnection
from router.telemetry.record import Outcome

if TYPE_CHECKING:
    from router.disaggregation.choice import Choice
    from router.fleet.replica import Replica
    from router.http.gateway import Gateway
    from router.http.request import Request
    from router.prompt import Prompt
    from router.queue.ticket import Ticket
    from router.scheduling.placer import Placement
    from router.telemetry.record import Finished

log = logging.getLogger(__name__)

_MOST_PREFILLS = 2
"""Prefill replicas that are tried for one request."""
_TAKEN_SECONDS = 1.0
"""Within this a decode replica has begun with what it was sent."""
_SILENT = (Outcome.TIMEOUT_FIRST_BYTE, Outcome.TIMEOUT_SILENCE)
_ALARM_SECONDS = 60.0
"""Between two log lines about a prefill replica without a connector."""


class Placed(Protocol):
    """A request that has a replica to answer it."""

    gateway: Gateway
    request: Request
    prompt: Prompt | None
    placement: Placement | None
    record: Finished
    ticket: Ticket | None


class Owner(Asker, Placed, Protocol):
    """The exchange, as far as a first leg needs it."""

    leg: FirstLeg | None
    connecting: asyncio.Task[None] | None

    @property
    def is_over(self) -> bool:
        """Nobody waits for it any more."""

    def deliver(self) -> None:
        """Send it to the replica that was chosen to answer it."""

    def crashed(self, exc: Exception) -> None:
        """The router itself has failed on it."""


def begins(exchange: Owner, apart: Disaggregation) -> bool:
    """Whether a first leg has begun, which delivers the request at its end."""
    leg, now = exchange.leg, monotonic()
    if leg is not None and leg.ready:
        if not leg.handed and now < leg.expires:
            return False  # the decode replica chosen before was never told
        leg.over()
        exchange.leg = None
    found = chosen(exchange, apart, now)
    if found is None:
        return False
    choice, prefilling = found
    if exchange.record.overhead < 0.0:
        exchange.record.overhead = now - exchange.request.started  # the first leg is no overhead
    exchange.leg = leg = FirstLeg(exchange, apart, choice.moved)
    if exchange.ticket is not None:
        exchange.gateway.queue.queue.relieve(exchange.ticket, now)
    exchange.connecting = exchange.gateway.spawn(leg.run(choice.slot, prefilling))
    return True


def chosen(exchange: Placed, apart: Disaggregation, now: float) -> tuple[Choice, int] | None:
    """The replica that is to prefill a request, and a mask of all that may; None where the replica
    that answers it does so itself."""
    placement, request, prompt = exchange.placement, exchange.request, exchange.prompt
    assert placement is not None
    if prompt is None:
        return None
    # What one of several answers fetched is gone for the others, and fields that the client sent
    # itself are its own business.
    rule = request.rule
    if (
        prompt.several
        or prompt.more
        or prompt.follows
        or prompt.transfer
        or not bodies.supports(rule.path)
        or request.body[:1] != b"{"
    ):
        apart.counts[Leg.UNSUPPORTED] += 1
        exchange.record.prefill_skipped = Leg.UNSUPPORTED
        return None
    prefilling = exchange.gateway.fleet.may_prefill(exchange.record.model)
    prefilling &= ~(1 << placement.slot)
    if not prefilling:
        apart.counts[Leg.NO_PREFILL] += 1
        exchange.record.prefill_skipped = Leg.NO_PREFILL
        return None
    prefilling &= ~apart.pairs.shunned(placement.slot, now)
    if not prefilling:
        apart.counts[Leg.CANNOT_FETCH] += 1
        exchange.record.prefill_skipped = Leg.CANNOT_FETCH
        return None
    answering = exchange.gateway.fleet.serving(exchange.record.model)
    choice = apart.choose(placement, placement.uncached, prefilling, answering, now)
    if choice.slot < 0:
        apart.counts[Leg.CHEAPER_LOCAL] += 1
        exchange.record.prefill_skipped = Leg.CHEAPER_LOCAL
        return None
    return choice, prefilling


class FirstLeg:
    """One request's prefill on another replica, and what is to become of its blocks."""

    __slots__ = (
        "_apart",
        "_asked",
        "_began",
        "_exchange",
        "_fetched",
        "_lost",
        "_prefill_slot",
        "_sent_at",
        "_told",
        "_transfer",
        "cached_tokens",
        "expires",
        "handed",
        "held_tokens",
        "moved",
        "params",
        "ready",
    )

    def __init__(self, exchange: Owner, apart: Disaggregation, moved: float) -> None:
        self._exchange = exchange
        self._apart = apart
        self._asked: Request | None = None
        """What a prefill replica was sent last."""
        self._began = monotonic()
        self._sent_at = 0.0
        self._prefill_slot = -1
        """Who has the blocks."""
        self._transfer = ""
        """What the connector may call it."""
        self._told = -1
        """The decode replica that was told where they are."""
        self._fetched = False
        """It has them: a token came."""
        self._lost = ""
        """How that replica has failed, before it had them."""
        self.cached_tokens = -1
        """Prompt tokens that the prefill replica had in its cache; -1 when it did not say."""
        self.held_tokens = 0.0
        """Those that it was believed to hold."""
        self.moved = moved
        """Tokens that the decode replica lacks."""
        self.ready = False
        """A prefill replica has the blocks, and a decode replica can have them."""
        self.params = b""
        """What the decode replica is to be told; empty where it finds them untold, and nobody keeps
        any for it."""
        self.handed = False
        """A decode replica was told."""
        self.expires = 0.0
        """Monotonic seconds from which the params are too old."""

    async def run(self, slot: int, prefilling: int) -> None:
        """Prefill on this replica, on failure on another of the mask, then deliver the request."""
        exchange, apart = self._exchange, self._apart
        try:
            for _ in range(_MOST_PREFILLS):
                if not await self._prefill(slot):
                    break
                # It failed: is there another?
                apart.counts[Leg.FAILED] += 1
                prefilling &= ~(1 << slot) & exchange.gateway.fleet.usable
                assert exchange.placement is not None
                if not prefilling:
                    break
                now = monotonic()
                answering = exchange.gateway.fleet.serving(exchange.record.model)
                slot = apart.choose(exchange.placement, self.moved, prefilling, answering, now).slot
                if slot < 0:
                    break
        except asyncio.CancelledError:
            apart.counts[Leg.CLIENT_GONE] += 1
            raise
        except Exception as exc:
            exchange.connecting = None
            exchange.crashed(exc)
            return
        if exchange.is_over:
            self.over()
            return
        exchange.connecting = None
        if not self.ready:
            self._burden()
        exchange.deliver()

    def _burden(self) -> None:
        """The decode replica computes the prompt itself."""
        exchange = self._exchange
        if exchange.ticket is not None:
            exchange.gateway.queue.queue.burden(exchange.ticket, monotonic())

    async def _prefill(self, slot: int) -> bool:
        """Have one replica prefill. Returns whether it failed, so that another may be asked."""
        exchange = self._exchange
        gateway, request, prompt = exchange.gateway, exchange.request, exchange.prompt
        assert prompt is not None
        fleet, now = gateway.fleet, monotonic()
        replica = fleet.replicas[slot]
        if replica is None:
            return True
        connector = self._apart.connector
        try:
            await connector.meet(replica)
        except NoHandOverError as error:
            self._lost_work(replica, error, now)
            return False
        try:
            self._transfer = token_hex(8)
            asking = connector.asking(self._transfer)
            body = bodies.prefill_body(request.body, request.rule.path, asking)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False  # the decode replica tells the client
        placement = gateway.placer.place(prompt, 1 << slot, now)
        if fleet.half_open >> slot & 1:
            fleet.admitted(slot)
        try:
            self._asked = asked = with_body(self._named(request), body)
            answer = await ask(gateway, replica, asked)
        except BaseException:
            placement.failed(monotonic())
            fleet.withdrawn(slot)
            raise
        now = monotonic()
        if isinstance(answer, Failure):
            placement.failed(now)
            if answer.reason is None:
                fleet.withdrawn(slot)
            else:
                fleet.failed(slot, answer.reason, now)
            gateway.telemetry.attempt_failed(replica.name, answer.outcome)
            return True
        return self._take(answer, placement, replica, now)

    def _take(self, answer: Answer, placement: Placement, replica: Replica, now: float) -> bool:
        """A whole answer has come. Returns whether it is a failure of the replica's."""
        gateway, apart = self._exchange.gateway, self._apart
        fleet, slot = gateway.fleet, placement.slot
        if answer.status != 200:
            placement.failed(now)
            if answer.status >= 500:
                fleet.failed(slot, "status", now)
                gateway.telemetry.attempt_failed(replica.name, Outcome.UPSTREAM_5XX)
                return True
            fleet.withdrawn(slot)
            apart.counts[Leg.REFUSED] += 1
            return False
        try:
            found = bodies.read_answer(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            placement.failed(now)
            fleet.failed(slot, "status", now)
            gateway.telemetry.attempt_failed(replica.name, Outcome.BAD_RESPONSE)
            return True
        placement.first_token(now)
        placement.finished(now, found.prompt_tokens, 0, found.cached_tokens)
        fleet.succeeded(slot, now)
        try:
            self.params = apart.connector.telling(found, self._transfer, replica)
        except NoHandOverError as error:
            self._lost_work(replica, error, now)
            return False
        self.ready = True
        self._exchange.record.prefill_replica = replica.name
        self._exchange.record.prefill_seconds = now - self._began
        self._prefill_slot = slot
        self.cached_tokens = found.cached_tokens
        self.held_tokens = placement.held_tokens
        self.expires = now + apart.connector.lease_seconds
        apart.prefill_seconds += now - self._began
        return False

    def _lost_work(self, replica: Replica, why: NoHandOverError, now: float) -> None:
        """No decode replica can have the blocks of this one."""
        self._apart.counts[Leg.NO_PARAMS] += 1
        self._apart.alarm(replica.name, str(why), now, _ALARM_SECONDS)

    def _named(self, request: Request) -> Request:
        """The request, under a name that no other one has where the connector needs that."""
        if not self._apart.connector.names_legs:
            return request
        name = b"%b-%b" % (request.request_id, self._transfer.encode())
        return msgspec.structs.replace(request, request_id=name)

    def hand_over(self, upstream: UpstreamConnection, replica: Replica, usage_at: int) -> None:
        """Send the request to the decode replica, with where the blocks are."""
        exchange, apart = self._exchange, self._apart
        splice = bodies.insertion(self.params)
        if not self.handed:  # a connection that had been closed is no second time
            apart.counts[Leg.HANDED_OVER] += 1
            apart.moved_tokens += self.moved
        self.handed = True
        self._told = replica.slot
        self._sent_at = monotonic()
        at = 1 if usage_at < 0 and splice else usage_at
        if usage_at >= 0:
            splice = ASK_USAGE + splice
        upstream.send(exchange, self._named(exchange.request), replica, at, splice)

    def not_loaded(self) -> bool:
        """The decode replica has failed. Whether it may be for the blocks, which it could not
        fetch: then it is to be asked again without them."""
        if not self.handed or not self.params:
            return False
        apart = self._apart
        apart.counts[Leg.NOT_LOADED] += 1
        prefiller = self._exchange.gateway.fleet.replicas[self._prefill_slot]
        if prefiller is not None:
            apart.connector.forget(prefiller.host)
        apart.pairs.failed(self._prefill_slot, self._told, monotonic())
        self._sent_at = 0.0  # what follows is no transfer
        self._lost = Leg.NOT_LOADED
        self.over()
        self._burden()
        return True

    def attempt_failed(self, outcome: str) -> None:
        """The decode replica has failed with this outcome."""
        if self.handed and not self._fetched and self.ready:
            self._lost = outcome

    def decoding(self, now: float) -> None:
        """The first token has come from the decode replica."""
        if self.used and not self._fetched:
            self._fetched = True
            self._apart.pairs.worked(self._prefill_slot, self._told)
        if self._sent_at:
            self._apart.speed.saw(self.moved, now - self._sent_at)
            self._sent_at = 0.0

    @property
    def used(self) -> bool:
        """The decode replica was handed blocks, and has not failed on them."""
        return self.handed and self.ready

    @property
    def fetching(self) -> bool:
        """A decode replica, which is well as far as is known, was told of blocks that are kept for
        it, and may not have them yet."""
        if not self.handed or not self.params or self._fetched:
            return False
        return not self._exchange.gateway.fleet.away(self._told)

    def leave(self, upstream: UpstreamConnection) -> None:
        """The client has left while the decode replica was `fetching`: close its connection.

        Not at once: an engine that has not read a request when it is hung up on never hears of the
        blocks, and nobody has them freed. One that has begun with it does.
        """
        seconds = self._sent_at + _TAKEN_SECONDS - monotonic()
        if seconds > 0.0:
            self._exchange.gateway.spawn(Nobody(upstream).hang_up(seconds))
        else:
            upstream.drop()

    def over(self) -> None:
        """Nothing more comes of it. Blocks that nobody has fetched are fetched and thrown away."""
        params, asked = self.params, self._asked
        if not self.ready or asked is None or (self.handed and not self._lost):
            return
        self.ready, self.params = False, b""
        if not params:
            return
        exchange, apart = self._exchange, self._apart
        gateway, handed = exchange.gateway, self.handed
        self.handed = True
        if self._lost in _SILENT or not gateway.fleet.usable >> self._prefill_slot & 1:
            # Who is silent may come back and fetch them; and where they were, there is nobody.
            apart.counts[Leg.STRANDED] += 1
            return
        slot = exchange.placement.slot if exchange.placement is not None else -1
        tried = 1 << self._told if handed else 0
        model = exchange.record.model
        gateway.spawn(release(gateway, apart, asked, params, model, slot, tried))
