"""One request for an endpoint: read it, choose, and keep the books until its answer is over.

The proxy's Exchange sends a request and relays the answer; here the data plane does both, and the
picker is told of them as far as the data plane is set up to. Parser, queue, placer and records are
the same.
"""

from __future__ import annotations

import logging
from heapq import nsmallest
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from router.fleet.holders import key_of
from router.http import seek as search
from router.http.choosing import Choosing
from router.http.local_reply import (
    Reply,
    error_reply,
    refusal_reply,
)
from router.http.routes import FORWARDED
from router.http.state import OVER, RELAYING, SENT
from router.picker.answer import Answer
from router.picker.prefill import PickedLeg, picked
from router.prompt import NO_PROMPT
from router.telemetry.record import Outcome
from router.tracing.context import HEADER as TRACEPARENT
from router.types import slots

if TYPE_CHECKING:
    from router.http.gateway import Gateway
    from router.http.request import Request
    from router.picker.endpoints import Endpoints
    from router.picker.unseen import Unseen
    from router.queue.ticket import Refusal
    from router.scheduling.placer import Placement

log = logging.getLogger(__name__)

_RETRY_STATUS: Final = frozenset((502, 503, 504))


class Door(Protocol):
    """The call through which the data plane asks."""

    def picked(self, pick: Pick) -> None:
        """A replica was chosen: tell the data plane."""

    def refused(self, reply: Reply) -> None:
        """The client gets this answer."""

    def broken(self) -> None:
        """The picker has failed, and what the data plane was told of it may not be whole."""


class Pick(Choosing):
    """See the module's text."""

    __slots__ = (
        "_answer",
        "_body_shown",
        "_door",
        "_endpoints",
        "_first_token_shown",
        "_prefill",
        "offered",
        "traceparent",
    )

    def __init__(
        self,
        gateway: Gateway,
        request: Request,
        endpoints: Endpoints,
        door: Door,
        subset: int,
        *,
        body_shown: bool,
        first_token_shown: bool,
    ) -> None:
        """subset: mask of the replicas that the data plane allows. body_shown, first_token_shown:
        it shows the request's body, and answers as they come."""
        super().__init__(gateway, request, subset)
        self._endpoints = endpoints
        self._door = door
        self._answer: Answer | None = None
        self._body_shown = body_shown
        self._first_token_shown = first_token_shown
        self._prefill: PickedLeg | None = None
        self.traceparent = b""
        """What the replica gets as its trace's parent; empty without tracing."""
        self.offered: tuple[int, ...] = ()
        """The slots told to the data plane, in order."""

    # -- choosing

    def start(self) -> None:
        """The request is whole."""
        gateway, request = self.gateway, self.request
        if gateway.tracer is not None and request.rule.treatment in FORWARDED:
            self.trace = gateway.tracer.begin(request.take_header(TRACEPARENT))
        try:
            self._read()
        except Exception as exc:  # a policy may be anybody's code
            self.crashed(exc)

    def _read(self) -> None:
        """Read the body as far as the path asks for it."""
        reply = self.read_body(shown=self._body_shown)
        if reply is not None:
            self.reply(reply)
            return
        request, prompt = self.request, self.prompt
        rule = request.rule
        if rule.keeps:
            named = search.name_in(request.target) if prompt is None else prompt.follows
            self.seek = search.seek_of(named, None)
        if prompt is not None and not self._first_token_shown:
            # Booked by the clock, like an answer that is no stream.
            prompt.stream = False
        self.prepare()

    # -- what the queue asks: router.http.queueing.Waiter

    def refused(self, refusal: Refusal) -> None:
        """The queue does not send it."""
        if refusal.why == "no_replica":
            serving = self.gateway.fleet.serving(self.record.model)
            self.reply(search.nobody(self, self.seek or search.Seek(), serving))
        else:
            self.reply(refusal_reply(self.request.rule.form, refusal))

    def send_to(self, placement: Placement) -> None:
        """A replica was chosen: tell the data plane, and others to try after it."""
        moved = self.state is RELAYING
        self.placement = placement
        self.replica = replica = self.gateway.fleet.replicas[placement.slot]
        assert replica is not None
        if self.trace is not None:
            self.traceparent = self.trace.attempt(replica.name)
        if moved:
            return
        self.state = SENT
        apart, prefill = self.gateway.disaggregation, -1
        if apart is not None:
            self._prefill = leg = picked(self, apart)
            # The books need no more of a first leg than it has.
            self.leg = leg  # type: ignore[assignment]
            prefill = leg.placement.slot if leg is not None else -1
        others = [slot for slot in self._fallbacks(placement) if slot != prefill]
        self.offered = (placement.slot, *others)
        self._door.picked(self)
        if self.request.body_size:
            self.free_body()
        self.record.overhead = monotonic() - self.request.started

    def _fallbacks(self, placement: Placement) -> list[int]:
        """The next best, as far as the setting for retries goes."""
        gateway = self.gateway
        most, replica = gateway.settings.retries, self.replica
        assert replica is not None
        # A header that names the rank would go to all of them.
        if not most or replica.rank_header or (self.seek is not None and self.seek.key):
            return []
        if placement.considered:
            costs = {slot: cost for slot, _, cost, _, _ in placement.considered}
        else:
            eligible = self.may_still_take(0)
            costs = {slot: gateway.fleet.loads[slot].in_flight for slot in slots(eligible)}
        costs.pop(placement.slot, None)
        next_best = nsmallest(most, costs, key=costs.__getitem__)
        return [slot for slot in next_best if not self._is_ranked(slot)]

    def _is_ranked(self, slot: int) -> bool:
        replica = self.gateway.fleet.replicas[slot]
        return replica is None or replica.rank_header != b""

    @property
    def prefill(self) -> str:
        """The endpoint that is to prefill it first; empty where it is not another one."""
        leg = self._prefill
        return "" if leg is None else self._endpoints.names[leg.placement.slot]

    # -- the answer

    def answered_by(self, endpoint: str, status: int, kind: bytes, encoding: bytes) -> None:
        """The head of an answer has come. endpoint: whose, empty where nobody says."""
        if endpoint and self.placement is not None:
            self._served(endpoint)
        self.record.status = status
        self.state = RELAYING
        self._answer = Answer(self.request.rule, status, kind, encoding)
        # The books need no more of a relay than an answer has.
        self.relay = self._answer  # type: ignore[assignment]

    def _served(self, endpoint: str) -> None:
        """Mend the books where another replica answered than the one that was placed first."""
        placement = self.placement
        assert placement is not None
        mask = self._endpoints.mask((endpoint,))
        served = self.gateway.telemetry.served_by
        if mask >> placement.slot & 1:
            served["first"] = served.get("first", 0) + 1
            return
        now = monotonic()
        fleet = self.gateway.fleet
        if any(mask >> slot & 1 for slot in self.offered):
            served["fallback"] = served.get("fallback", 0) + 1
            self.record.retries += 1
            assert self.replica is not None
            failure = Outcome.DIED_BEFORE_HEAD
            self.gateway.telemetry.attempt_failed(self.replica.name, failure)
            # The data plane has tried those before it in vain.
            fleet.failed(placement.slot, "died", now)
        else:
            served["other"] = served.get("other", 0) + 1
            fleet.withdrawn(placement.slot)
        if not mask:
            return
        placement.failed(now)
        if self.trace is not None:
            self.trace.attempt_failed(Outcome.DIED_BEFORE_HEAD)
        self.state = RELAYING  # what was told to the data plane stands
        if self.ticket is not None:
            self.gateway.queue.again(self.ticket, mask)
        else:
            self.send_to(self.gateway.balancer.place(NO_PROMPT, mask, now))

    def shown(self, data: bytes) -> None:
        """A piece of the answer's body."""
        answer = self._answer
        if answer is None:
            return
        now = monotonic()
        seek = self.seek
        if seek is not None and self.record.status == 200 and answer.bytes_out < search.ID_REACH:
            self._remember(seek, data)
        if answer.scan(data, now) and self.placement is not None:
            self.placement.first_token(now)
            if self._prefill is not None:
                self._prefill.over()
            if self.ticket is not None:
                self.gateway.queue.queue.first_token(self.ticket, now)

    def _remember(self, seek: search.Seek, data: bytes) -> None:
        """Note which replica made a response: only it can go on with it."""
        placement = self.placement
        if not self.request.rule.keeps or placement is None:
            return
        name = search.id_in(seek.held + data)
        if name:
            seek.held = b""
            self.gateway.holders.remember(key_of(name, ""), placement.slot)
        else:
            seek.held = (seek.held + data)[: search.ID_REACH]

    def answered(self) -> None:
        """The answer is whole."""
        if self.state is OVER:
            return
        if self._answer is not None:
            self._answer.finish()
        if self.record.status in _RETRY_STATUS:
            self.blame("status")
        self.end(self.settle_answer())

    @property
    def is_stream(self) -> bool:
        """A streamed answer is on its way."""
        return self._answer is not None and self._answer.is_stream

    @property
    def headed(self) -> bool:
        """The head of the answer has come."""
        return self._answer is not None

    def unseen(self, unseen: Unseen) -> None:
        """No more of the answer is shown: the books stay open until it should be over."""
        if self.state is OVER:
            return
        assert self.placement is not None
        ticket, self.ticket = self.ticket, None
        unseen.add(self.placement, ticket, monotonic())
        if self._prefill is not None:
            unseen.add(self._prefill.placement, None, monotonic())
            self.leg = None
        self.end(Outcome.OK)

    def gone(self) -> None:
        """The call has ended before the answer was whole, as far as anybody knows."""
        if self.state is OVER:
            return
        if self._answer is not None and self._answer.ended:
            self.answered()
            return
        self.stop_waiting()
        self.settle_unfinished()
        self.end(Outcome.CLIENT_GONE)

    # -- answers of its own

    def crashed(self, exc: Exception) -> None:
        """The picker itself has failed on this request: keep the books right, and say so."""
        log.error("request %s failed", self.request.request_id.decode(), exc_info=exc)
        if self.state is OVER:
            return
        answered = self.state in (SENT, RELAYING)
        self.settle_unfinished()
        if answered:
            self.end(Outcome.INTERNAL)
            self._door.broken()
        else:
            message = "the router failed on this request"
            self.reply(error_reply(self.request.rule.form, 500, message, Outcome.INTERNAL))

    def refuse(self, status: int, message: str, outcome: str) -> None:
        """Answer with an error in the API's form."""
        self.reply(error_reply(self.request.rule.form, status, message, outcome))

    def reply(self, reply: Reply) -> None:
        """The client gets this answer, of the picker's own."""
        self.record.status = reply.status
        self.record.bytes_out = len(reply.body)
        self._door.refused(reply)
        self.end(reply.outcome)
