"""Answers that the data plane does not show: when they are over is learned from the engines.

Where an answer's body is not sent to the picker, Envoy ends the call with the answer's head, or
with the choice. The request then stays in the books until its engine's metrics say that fewer
requests are in progress than the books have; where there are no fresh metrics, until the answer
should be over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from router.queue.ticket import Ticket
from router.scheduling.accounting import expected_step
from router.scheduling.placer import Placement

if TYPE_CHECKING:
    from router.http.gateway import Gateway

_STEP_S: Final = 0.02
"""Seconds that a token is taken to need where no answer has taught better."""
_MARGIN_S: Final = 0.25
"""A request that was sent shortly before an engine counted may not have been counted."""
_STALE_S: Final = 5.0
"""Metrics older than this say nothing any more."""
_LONGEST_S: Final = 1800.0
"""No answer is taken to last longer than this."""


class _Entry(msgspec.Struct, eq=False):
    placement: Placement
    ticket: Ticket | None
    since: float
    due: float


class Unseen:
    """Its mutable state: by slot, the requests in progress that are not shown, and the time of the
    last reading that was compared with them."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._open: dict[int, list[_Entry]] = {}
        self._read_at: dict[int, float] = {}
        self.heads = False
        """Heads of such answers are shown: a call that ends before was given up by its client."""

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    def add(self, placement: Placement, ticket: Ticket | None, now: float) -> None:
        """It was sent, and no more of it is shown."""
        load, prompt = placement.load, placement.prompt
        tokens = self._gateway.placer.usual_answer(prompt.model)
        if 0 < prompt.output_limit < tokens:
            tokens = float(prompt.output_limit)
        step = max(_STEP_S, load.step_seconds + expected_step(load))
        due = now + load.queued_tokens / load.prefill_rate + tokens * step
        self._open.setdefault(placement.slot, []).append(_Entry(placement, ticket, now, due))

    def tick(self, now: float) -> None:
        """Take those out of the books that are over. Called regularly."""
        for slot, entries in list(self._open.items()):
            entries.sort(key=lambda entry: entry.due)
            over = self._counted(slot, entries, now)
            if over < 0:
                over = sum(entry.due <= now for entry in entries)
            else:
                over = max(over, sum(entry.since + _LONGEST_S <= now for entry in entries))
            for entry in entries[:over]:
                self._finish(entry, now)
            del entries[:over]
            if not entries:
                del self._open[slot]

    def close(self, now: float) -> None:
        """The picker stops: nothing stays in the books that other routers share."""
        for entries in self._open.values():
            for entry in entries:
                self._finish(entry, now)
        self._open.clear()

    def _counted(self, slot: int, entries: list[_Entry], now: float) -> int:
        """How many are over by the engine's own count; -1 where it is not known."""
        replica = self._gateway.fleet.replicas[slot]
        if replica is None or replica.load is not entries[0].placement.load:
            return len(entries)  # it left
        engine, at = replica.engine, replica.engine_at
        if engine is None or engine.running is None or now - at > _STALE_S:
            return -1
        if self._read_at.get(slot) == at:
            return 0
        self._read_at[slot] = at
        young = sum(entry.since > at - _MARGIN_S for entry in entries)
        shown = replica.external.own(replica.load) - len(entries)
        running = round(engine.running + (engine.waiting or 0.0)) - max(0, shown)
        return max(0, len(entries) - young - max(0, running))

    def _finish(self, entry: _Entry, now: float) -> None:
        entry.placement.finished(now)
        if entry.ticket is not None:
            self._gateway.queue.queue.ended(entry.ticket, now)
