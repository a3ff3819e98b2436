"""How a request of the proxy or of the endpoint picker gets its replica: who may take it, and the
way through the queue to one of them. What is done with the choice is for Exchange and Pick to say.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from time import monotonic
from typing import TYPE_CHECKING, Final

from router.http import seek as search
from router.http.bookkeeping import Bookkeeping
from router.http.state import CHOOSING, OVER, QUEUED, WAITING
from router.prompt import NO_PROMPT
from router.queue.ticket import OVER as LEFT

if TYPE_CHECKING:
    import asyncio

    from router.http.gateway import Gateway
    from router.http.hold import Held
    from router.http.local_reply import Reply
    from router.http.request import Request
    from router.http.upstream import Failure
    from router.prompt import Prompt
    from router.queue.departures import Quote
    from router.queue.ticket import Refusal
    from router.scheduling.placer import Placement

EVERYWHERE: Final = -1
"""As a mask: no replica is left out."""


class Choosing(Bookkeeping, ABC):
    """A request on its way to a replica. Implements ``router.http.queueing.Waiter``."""

    __slots__ = ("allowed", "arrived", "connecting", "failure", "held", "seek")

    def __init__(self, gateway: Gateway, request: Request, allowed: int = EVERYWHERE) -> None:
        super().__init__(gateway, request)
        self.allowed = allowed
        """Mask of the replicas that may be asked at all."""
        self.arrived = request.started
        """When it came, or was held no longer: its time in the queue counts from then."""
        self.seek: search.Seek | None = None
        """Where the fleet's books alone do not tell who has what is asked for."""
        self.connecting: asyncio.Task[None] | None = None
        """Connects to a replica, or takes a fresh look at the engines."""
        self.held: Held | None = None
        """It waits for a replica of its model; None where it does not."""
        self.failure: Failure | None = None
        """The last attempt's, once one has failed."""

    # -- what becomes of a choice: each kind of request says

    @abstractmethod
    def send_to(self, placement: Placement) -> None:
        """A replica was chosen."""

    @abstractmethod
    def refused(self, refusal: Refusal) -> None:
        """The queue does not send it."""

    @abstractmethod
    def reply(self, reply: Reply) -> None:
        """The client gets this answer, of the router's own."""

    @abstractmethod
    def crashed(self, exc: Exception) -> None:
        """The router itself has failed on this request."""

    def nobody_left(self, seek: search.Seek, serving: int) -> None:
        """There is nobody to ask. serving: who serves its model, usable or not."""
        self.reply(search.nobody(self, seek, serving))

    # -- out of the fleet: nowhere, unless a kind of request knows where

    def overflows(self, serving: int) -> bool:  # noqa: ARG002
        """Whether it goes outside of the fleet. serving: who serves its model, usable or not."""
        return False

    def quote(self) -> Quote | None:
        """What it takes to answer it outside of the fleet."""
        return None

    def leaves(self, why: str) -> bool:  # noqa: ARG002
        """Whether the queue may have it leave the fleet now, and it does."""
        return False

    # -- choosing

    def prepare(self) -> None:
        """It is read: tokenise it in exact mode, maybe beside this turn, and place it."""
        exact, prompt, request = self.gateway.exact, self.prompt, self.request
        if exact is not None and prompt is not None:
            api = request.rule.api
            if exact.prepare(api, prompt, request.body, self._tokenised):
                self.state = WAITING
                return
        self._place()

    def _tokenised(self) -> None:
        """The prompt was tokenised beside the event loop, or not in time."""
        if self.state is not OVER:
            self.place()

    def place(self) -> None:
        """Choose a replica; or answer where there is none."""
        self.state = CHOOSING
        try:
            self._place()
        except Exception as exc:  # a policy may be anybody's code
            self.crashed(exc)

    def _place(self) -> None:
        gateway, model = self.gateway, self.record.model
        fleet = gateway.fleet
        # Who may take it? Serves the model, is usable, and was not tried.
        serving = fleet.serving(model)
        prompt, seek = self.prompt, self.seek
        if seek is not None:
            seek.held = b""  # of an answer that broke off
        eligible = self._known(serving)
        if not eligible:
            eligible = self._others(serving)
            if not eligible:
                return
        if fleet.lengths and prompt is not None and model in fleet.lengths:
            eligible = search.fitting(self, eligible)
        if prompt is not None:
            self._queue(prompt, eligible)
            return
        placement = gateway.balancer.place(NO_PROMPT, eligible, monotonic())
        if fleet.half_open >> placement.slot & 1:
            fleet.admitted(placement.slot)
        self.send_to(placement)

    def _known(self, serving: int) -> int:
        """Those that are known to serve it, and may be asked now."""
        fleet, engine = self.gateway.fleet, self.request.rule.engine
        eligible = serving & fleet.usable & ~self.tried
        if engine:
            eligible = fleet.of_engine(engine, eligible)
        if self.seek is not None and self.seek.key:
            eligible = search.holding(self, self.seek, serving, eligible)
        return eligible & self.allowed

    def _queue(self, prompt: Prompt, eligible: int) -> None:
        """Hand it to the queue, which places it and has it sent: at once, or after a wait."""
        self.state = QUEUED
        if self.ticket is None:
            text = prompt.text
            self.gateway.queue.offer(
                self, self.request, prompt, self.record.key, eligible, self.arrived
            )
            if self.gateway.diagnoser is not None:
                # Not in this turn: it is on its way already, and its answer is far.
                self.gateway.loop.call_soon(self.diagnose, prompt, text)
        elif self.ticket.state is LEFT:
            self.gateway.queue.stays(self, self.ticket, prompt, eligible)
        else:
            self.gateway.queue.again(self.ticket, eligible)

    def may_still_take(self, found: int) -> int:
        """Who may take it after a wait in the queue. found: who might before."""
        fleet, model = self.gateway.fleet, self.record.model
        eligible = self._known(fleet.serving(model))
        if not eligible and self.seek is not None and self.seek.passed_on:
            eligible = found & fleet.usable & ~self.tried
        if not eligible and not self.tried and (self.seek is None or not self.seek.holder):
            eligible = fleet.last_resort(model) & self.allowed
        if eligible and fleet.lengths and model in fleet.lengths:
            eligible = search.fitting(self, eligible)
        return eligible

    def _others(self, serving: int) -> int:
        """No replica that is known to serve this can be asked: who may be asked all the same.

        0: nobody, and the client was answered, or a fresh look at the engines comes first.
        """
        self.seek = seek = self.seek or search.Seek()
        failed = self.failure is not None
        if not (failed or self.tried or seek.key) and self.overflows(serving):
            return 0
        mask = search.others(self, seek, serving, failed=failed)
        if mask == search.LOOK:
            self.state = WAITING
            self.connecting = self.gateway.spawn(self._look_and_place())
            return 0
        mask &= self.allowed
        if not mask:
            # Of those that a data plane allows one has to come.
            may_wait = self.allowed and not (failed or seek.holder or seek.waited)
            if may_wait and self._hold(seek, serving & self.allowed):
                return 0
            self.nobody_left(seek, serving)
        return mask

    async def _look_and_place(self) -> None:
        try:
            await self.gateway.fleet.look(self.record.model, self.tried)
        finally:
            self.connecting = None
        if self.state is not OVER:
            self.place()

    def _hold(self, seek: search.Seek, serving: int) -> bool:
        """Whether it waits for a replica of its model: to be placed as soon as there is one, or
        answered when there was none in time."""
        prompt = self.prompt
        sizes = self.request.body_size, len(prompt.text) if prompt is not None else 0
        self.held = self.gateway.holding.hold(
            self.record.model, serving, sizes, self._is_served, self._held_no_longer
        )
        if self.held is None:
            return False
        seek.waited = True
        self.state = WAITING
        return True

    def _is_served(self) -> bool:
        """Whether there is a replica for it now."""
        fleet, model = self.gateway.fleet, self.record.model
        return bool(self._known(fleet.serving(model)) or fleet.last_resort(model) & self.allowed)

    def _held_no_longer(self) -> None:
        self.held = None
        self.arrived = monotonic()
        self.place()

    def stop_waiting(self) -> None:
        """Nobody wants its answer any more: end what it waits for beside the events."""
        connecting, self.connecting = self.connecting, None
        if connecting is not None:
            connecting.cancel()
        held, self.held = self.held, None
        if held is not None:
            held.cancel()
