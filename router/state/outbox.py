"""What this router has to tell the others. The requests' way only appends here.

The mutable state: facts not sent yet, and the requests in flight that others know of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol, TypeAlias

from router.scheduling.placer import Placement
from router.state.allowance import Allowance
from router.state.chain_dictionary import ChainDictionary
from router.state.codec import (
    BYE,
    ENDED,
    FAILED,
    FINISHED,
    FIRST,
    FORGOT,
    HELLO,
    KEPT,
    MAX_CHAIN_BLOCKS,
    MAX_UINT32,
    MISSING,
    PLACED,
    RESIZED,
    ROUTED,
    OpenRequest,
    Writer,
)
from router.state.queue_facts import QueueFact
from router.types import Chain

BATCH_DELAY_S: Final = 0.015
"""Seconds from a fact to the batch it is sent in: long enough for a batch to hold several."""
EARLY_SPACING_S: Final = 0.002
"""Seconds between two batches sent at once, for a request that was routed: a router that does not
know of it would send its own behind it."""
MAX_EARLY_BATCHES: Final = 8
"""Batches sent at once after a rest; who wants more of them than one every BATCH_DELAY_S gets
none."""
LARGE_REQUEST_TOKENS: Final = 1024.0
"""Requests with so many uncached tokens count by themselves, so that many small ones do not hold
them up."""
MAX_WAITING_FACTS: Final = 20_000
"""Facts that wait for a way out before they are given up: 13 s of 500 requests a second."""
MAX_BATCH_BYTES: Final = 256 * 1024
"""Bytes of hashes after which a batch is closed and another one begun."""

Subject: TypeAlias = "Placement | QueueFact | tuple[int, int] | None"
"""What a fact is about: a request, (a replica's key or a hash, a number), or nothing."""


class Timer(Protocol):
    """A call that is scheduled."""

    def cancel(self) -> None:
        """Cancel the call."""
        ...


class Outbox:
    """The placer tells it of requests, the rest of the router of replicas.

    `later(BATCH_DELAY_S, due)` is called with the first fact after a batch, and sooner for a
    request that was routed; `due` then calls `ready`.
    """

    def __init__(
        self,
        router: int,
        dictionary: ChainDictionary,
        replicas: dict[int, int],
        later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        """replicas: slot -> name_key, kept by whoever made it."""
        self.router = router
        self.number = 0
        """Of the last batch made."""
        self.sent = 0
        """Facts put into batches."""
        self.dropped = 0
        """Facts given up. What they told of chains is told later, from the index."""
        self.lost_since = 0.0
        """When the first request was routed whose fact was given up and not made up for; or 0."""
        self.tells_queue = False
        """Others may go by what this router tells of its queue."""
        self.ready: Callable[[], None] | None = None
        self._dictionary = dictionary
        self._replicas = replicas
        self._later = later
        self._facts: list[tuple[int, Subject]] = []
        self._open: dict[int, Placement] = {}
        self._serial = 0
        self._timer: Timer | None = None
        """Runs from the first fact after a batch to its sending."""
        self._hurried = False
        """It runs short, for a request."""
        self._small_early = Allowance(BATCH_DELAY_S, MAX_EARLY_BATCHES)
        self._large_early = Allowance(BATCH_DELAY_S, MAX_EARLY_BATCHES)
        self._next_early = 0.0
        self._in_flight_due = False

    # On the requests' way

    def routed(self, placement: Placement) -> None:
        """A request was placed."""
        self._facts.append((ROUTED, placement))
        if not self._hurried:
            early = (
                self._large_early
                if placement.uncached >= LARGE_REQUEST_TOKENS
                else self._small_early
            )
            if early.spend(placement.sent_at):
                self._hurry(placement.sent_at)
            elif self._timer is None:
                self._arm(BATCH_DELAY_S)

    def first_token(self, placement: Placement) -> None:
        """The first token of a request has come."""
        self._facts.append((FIRST, placement))
        if self._timer is None:
            self._arm(BATCH_DELAY_S)

    def finished(self, placement: Placement) -> None:
        """The answer of a request has ended."""
        self._facts.append((FINISHED, placement))
        if self._timer is None:
            self._arm(BATCH_DELAY_S)

    def failed(self, placement: Placement) -> None:
        """A request ended without an answer."""
        self._facts.append((FAILED, placement))
        if self._timer is None:
            self._arm(BATCH_DELAY_S)

    def tell_queue(self, kind: int, fact: QueueFact) -> None:
        """PLACED, SENT, FREED or ENDED: something became of a request in the queue."""
        self._facts.append((kind, fact))
        if self._timer is None:
            self._arm(BATCH_DELAY_S)

    # Beside it

    def forgot(self, replica: int) -> None:
        """A replica's cache is empty."""
        self._tell(FORGOT, (replica, 0))

    def resized(self, replica: int, tokens: int) -> None:
        """A replica's cache has room for so many tokens."""
        self._tell(RESIZED, (replica, tokens))

    def kept(self, replica: int, key: int) -> None:
        """A replica keeps a response or a conversation."""
        self._tell(KEPT, (replica, key))

    def missing(self, key: int) -> None:
        """Nobody should refer to the chain of this hash."""
        self._dictionary.forget(key)
        self._tell(MISSING, (key, 0))

    def hello(self) -> None:
        """Ask the others to call the roll; call it too."""
        self._tell(HELLO, None)
        self.send_in_flight()

    def bye(self) -> None:
        """This router is no more."""
        self._tell(BYE, None)

    def send_in_flight(self) -> None:
        """Put all requests in flight into the next batch."""
        self._in_flight_due = True
        if self._timer is None:
            self._arm(BATCH_DELAY_S)

    @property
    def waiting(self) -> int:
        """Facts not sent yet."""
        return len(self._facts)

    @property
    def in_flight(self) -> int:
        """Requests in flight that others know of."""
        return len(self._open)

    def _tell(self, kind: int, about: tuple[int, int] | None) -> None:
        self._facts.append((kind, about))
        if self._timer is None:
            self._arm(BATCH_DELAY_S)

    def _arm(self, delay: float) -> None:
        self._timer = self._later(delay, self._due)

    def _hurry(self, now: float) -> None:
        """Send a batch as soon as may be."""
        self._hurried = True
        if self._timer is not None:
            self._timer.cancel()
        at = max(now, self._next_early)
        self._next_early = at + EARLY_SPACING_S
        self._arm(at - now)

    def _due(self) -> None:
        self._timer = None
        self._hurried = False
        if self.ready is not None:
            self.ready()

    def trim(self) -> None:
        """Give up facts about requests, and about what they left behind, when too many wait; those
        about replicas stay."""
        facts = self._facts
        if len(facts) <= MAX_WAITING_FACTS:
            return
        kept: list[tuple[int, Subject]] = []
        for kind, about in facts:
            if not isinstance(about, Placement):
                if kind != KEPT and not isinstance(about, QueueFact):
                    kept.append((kind, about))
                continue
            if kind == ROUTED:
                if not self.lost_since or about.sent_at < self.lost_since:
                    self.lost_since = about.sent_at
                self._number(about)
            elif kind != FIRST:
                self._open.pop(about.serial, None)
        self.dropped += len(facts) - len(kept)
        self._facts = kept
        self._in_flight_due = True

    def _number(self, placement: Placement) -> int:
        self._serial = serial = self._serial + 1
        placement.serial = serial
        self._open[serial] = placement
        return serial

    def take(self) -> bytes | None:
        """The next batch; None when there is nothing to tell."""
        if not self._facts and not self._in_flight_due:
            return None
        writer = self._writer()
        facts = self._facts
        done = 0
        for kind, about in facts:
            done += 1
            if kind == ROUTED:
                assert isinstance(about, Placement)
                self._routed(writer, about)
                if writer.size >= MAX_BATCH_BYTES:
                    break
            elif isinstance(about, QueueFact):
                self._queue_fact(writer, kind, about)
                if writer.size >= MAX_BATCH_BYTES:
                    break
            elif isinstance(about, Placement):
                if about.serial:
                    writer.request_fact(kind, about.serial)
                    if kind != FIRST:
                        self._open.pop(about.serial, None)
            elif about is None:
                writer.plain(kind)
            elif kind == FORGOT:
                writer.forgot(about[0])
            elif kind == RESIZED:
                writer.resized(*about)
            elif kind == KEPT:
                writer.kept(*about)
            else:
                writer.missing(about[0])
        del facts[:done]
        if self._in_flight_due and not facts:
            self._in_flight_due = False
            writer.in_flight(list(self._open_requests()))
        return self._batch(writer)

    def pulse(self) -> bytes:
        """A batch without facts: this router lives."""
        return self._batch(self._writer())

    def _writer(self) -> Writer:
        return Writer([] if self.tells_queue else None)

    @staticmethod
    def _queue_fact(writer: Writer, kind: int, fact: QueueFact) -> None:
        serial = fact.placement.serial
        if not serial:
            return
        if kind == PLACED:
            placed = fact.placed(serial)
            if placed is not None:
                writer.placed(placed)
        elif kind == ENDED:
            writer.ended(serial, fact.own, fact.ticket.tail)
        else:
            writer.queue_fact(kind, serial)

    def _batch(self, writer: Writer) -> bytes:
        self.number += 1
        self.sent += writer.count
        return writer.batch(self.router, self.number)

    def _routed(self, writer: Writer, placement: Placement) -> None:
        replica = self._replicas.get(placement.slot)
        if replica is None:
            return
        prompt = placement.prompt
        chain = prompt.chain
        if len(chain) > MAX_CHAIN_BLOCKS:
            chain = chain[:MAX_CHAIN_BLOCKS]
        depth, key, tail = self._known(chain)
        writer.routed(
            replica,
            self._number(placement),
            prompt.size,
            placement.uncached,
            placement.tokens,
            depth,
            key,
            tail,
        )
        for each in prompt.more:
            writer.held(replica, 0.0, *self._known(each[:MAX_CHAIN_BLOCKS]))

    def _known(self, chain: Chain) -> tuple[int, int, Chain]:
        """A chain as it is sent: what the others know of it, and the rest."""
        dictionary = self._dictionary
        depth = dictionary.depth(chain)
        key = chain[depth - 1] if depth else 0
        tail = chain[depth:]
        dictionary.learn(depth, key, tail)
        return depth, key, tail

    def _open_requests(self) -> Iterator[OpenRequest]:
        for serial, placement in self._open.items():
            replica = self._replicas.get(placement.slot)
            if replica is not None:
                yield OpenRequest(
                    serial & MAX_UINT32,
                    replica,
                    placement.uncached,
                    placement.tokens,
                    placement.first,
                )

    def resend_from_index(self, held: Iterable[tuple[int, float, Chain]]) -> Iterator[bytes]:
        """Batches that tell of chains held: (name_key, age in seconds, chain), oldest first."""
        writer = self._writer()
        for replica, age, chain in held:
            writer.held(replica, age, *self._known(chain[:MAX_CHAIN_BLOCKS]))
            if writer.size >= MAX_BATCH_BYTES:
                yield self._batch(writer)
                writer = self._writer()
        if writer.count:
            yield self._batch(writer)
