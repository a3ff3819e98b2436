"""The books of sessions: how much KV memory those in progress will want again, at each replica.

A session is a client that sends its history again and again. While it pauses its cache lies idle,
and counts as far as it is likely to come back while keeping it pays. Mutable: sums by replica, kept
with every change, so that asking what is wanted there costs nothing.
"""

from __future__ import annotations

from collections import deque

from router.queue.returns import BINS, EDGES, FORGOTTEN_S, Beginnings, Returns
from router.queue.session import Books, Session, Tail
from router.queue.ticket import Ticket

SINGLES_SHARE = 0.2
"""Of a replica's KV memory: single requests count for no more, so that they do not shut sessions
out."""
LIKELY_GOES_ON = 0.5
"""Share of first requests that go on from which a new session counts as one that has come back."""
MOST_SESSIONS = 100_000
"""At more, those that have been idle for longest are forgotten."""
MOST_TAILS = 16
"""Prompts kept that have the same last full block."""
MEAN_MEMORY = 0.995
MEAN_AFTER = 10.0
"""How the mean size forgets, and the sessions after which it is known."""


class Sessions:
    """All sessions of all routers."""

    def __init__(self) -> None:
        self.returns = (Returns(came_back_before=False), Returns(came_back_before=True))
        self.beginnings = Beginnings()
        self._books: list[Books] = []
        self._by_key: dict[str, Session] = {}
        self._by_tail: dict[int, list[Session]] = {}
        self._idle: list[deque[tuple[Session, int]]] = [deque() for _ in range(BINS)]
        """By bin: (session, which of its pauses), in the order they came into the bin."""
        self._own_sum = self._own_count = 0.0
        self.count = 0
        self.idle_count = 0
        self.horizon = 0.0
        """Seconds for which the cache of a session that pauses is worth keeping, at most."""
        self.set_horizon(0.0)

    def set_horizon(self, seconds: float) -> None:
        """The idle time for which a cache is worth keeping; makes the weights anew."""
        self.horizon = seconds
        for returns in self.returns:
            returns.update(seconds)
        for books in self._books:
            books.idle_wanted = sum(
                weight * tokens
                for returns, row in zip(self.returns, books.idle, strict=True)
                for weight, tokens in zip(returns.weights, row, strict=True)
            )

    # -- what is asked

    def wanted(self, slot: int, capacity: float) -> float:
        """Tokens of KV memory that sessions in progress are expected to use there again."""
        if slot >= len(self._books):
            return 0.0
        books = self._books[slot]
        single, several = books.active
        most = SINGLES_SHARE * capacity
        idle = books.idle_wanted
        # Between ticks rounding may leave it a hair below 0.
        return several + (single if single < most else most) + (idle if idle > 0.0 else 0.0)

    def mean_own(self) -> float:
        """Tokens a session has to itself, of late; 0 while not known."""
        return self._own_sum / self._own_count if self._own_count >= MEAN_AFTER else 0.0

    def returning(self, prefix: int) -> float:
        """The chance that a session which begins now comes back while its cache is worth
        keeping."""
        kind = self._kind(prefix)
        return self.returns[kind].weights[0]

    def _kind(self, prefix: int) -> int:
        return int(self.beginnings.share(prefix) > LIKELY_GOES_ON)

    def find(self, ticket: Ticket) -> Session | None:
        """The session that a request goes on with: the one of its key, or without one that whose
        whole last prompt it begins with."""
        if ticket.session:
            return self._by_key.get(ticket.session)
        end = ticket.tail
        if end is None or not self._by_tail:
            return None
        by_tail, chain = self._by_tail, ticket.chain
        if by_tail.keys().isdisjoint(chain):
            return None
        blocks_found = [blocks for blocks, key in enumerate(chain, 1) if key in by_tail]
        for blocks in reversed(blocks_found):
            found = by_tail[chain[blocks - 1]]
            for session in reversed(found):
                tail = session.tail
                assert tail is not None
                if blocks == len(chain) and tail.length >= end.length:
                    continue  # the very same prompt again is another request, not the next step
                if ticket.owner.tail_digest(blocks, tail.length) == tail.digest:
                    return session
        return None

    # -- what happens

    def begin(self, key: str, prefix: int, own: float, expected: float, now: float) -> Session:
        """The first request of a session is placed, `moved` tells where."""
        kind = self._kind(prefix)
        session = Session(key, prefix, own, own if own > expected else expected, now, 1, kind)
        self.count += 1
        if key:
            self._by_key[key] = session
        return session

    def name(self, session: Session, key: str) -> None:
        """Name one that is told by its prompts, for other routers."""
        session.key = key
        self._by_key[key] = session

    def came(self, session: Session, now: float) -> None:
        """Another request of it has come."""
        if session.bin >= 0:
            if not session.returned:
                session.returned = True
                self.beginnings.went_on(session.prefix)
            self.returns[session.kind].returned[session.bin] += 1.0
            self._charge_idle(session, -session.counted)
            session.kind = 1
            session.bin = -1
            self.idle_count -= 1
            self._charge_active(session, session.counted)
        session.active += 1
        session.seen = now

    def moved(self, session: Session, slot: int) -> None:
        """A request of it was placed there."""
        books = self._books[slot] if slot < len(self._books) else self._of(slot)
        if session.books is not books:
            if session.books is not None:
                session.books.active[session.kind] -= session.counted
            session.books = books
            books.active[session.kind] += session.counted

    def answered(self, session: Session, own: float, tail: Tail | None, now: float) -> None:
        """A request of it has its answer; it has so many tokens to itself now."""
        self._own_sum = self._own_sum * MEAN_MEMORY + own
        self._own_count = self._own_count * MEAN_MEMORY + 1.0
        session.own = own
        if own > session.counted:
            self._charge_active(session, own - session.counted)
            session.counted = own
        if tail is not None:
            self._set_tail(session, tail)
        if not session.returned and session.active == 1 and not session.pause:
            self.beginnings.began(session.prefix)
        self._leaves(session, now, over=False)

    def gave_up(self, session: Session, now: float) -> None:
        """A request of it has left without an answer. A session that never had one is over."""
        self._leaves(session, now, over=not session.pause)

    def _leaves(self, session: Session, now: float, *, over: bool) -> None:
        session.active -= 1
        session.seen = now
        if session.active > 0:
            return
        if over:
            self._end(session)
            return
        session.bin = 0
        session.pause += 1
        books, kind, counted = session.books, session.kind, session.counted
        if books is not None:
            books.active[kind] -= counted
            books.idle[kind][0] += counted
            books.idle_wanted += counted * self.returns[kind].weights[0]
        self._idle[0].append((session, session.pause))
        self.idle_count += 1
        if self.count > MOST_SESSIONS:
            self._forget_one()

    def forget_slot(self, slot: int) -> None:
        """The replica has left. What was charged to it is settled with its old books."""
        if slot < len(self._books):
            self._books[slot] = Books()

    def tick(self, now: float) -> None:
        """Pauses have become longer. About twice a second."""
        for b, row in enumerate(self._idle[:-1]):
            edge = EDGES[b]
            while row:
                session, pause = row[0]
                if session.pause != pause or session.bin != b:
                    row.popleft()
                elif now - session.seen >= edge:
                    row.popleft()
                    self.returns[session.kind].passed[b] += 1.0
                    self._charge_idle(session, -session.counted)
                    if edge >= FORGOTTEN_S:
                        self.returns[session.kind].passed[BINS - 1] += 1.0
                        session.bin = -1
                        self.idle_count -= 1
                        self._drop(session)
                    else:
                        session.bin = b + 1
                        self._charge_idle(session, session.counted)
                        self._idle[b + 1].append((session, pause))
                else:
                    break

    # -- books

    def _charge_active(self, session: Session, tokens: float) -> None:
        if session.books is not None:
            session.books.active[session.kind] += tokens

    def _charge_idle(self, session: Session, tokens: float) -> None:
        books, kind, b = session.books, session.kind, session.bin
        if books is not None:
            books.idle[kind][b] += tokens
            books.idle_wanted += tokens * self.returns[kind].weights[b]

    def _of(self, slot: int) -> Books:
        books = self._books
        while slot >= len(books):
            books.append(Books())
        return books[slot]

    def _set_tail(self, session: Session, tail: Tail) -> None:
        if session.tail is not None:
            self._unset_tail(session)
        session.tail = tail
        same = self._by_tail.get(tail.block)
        if same is None:
            self._by_tail[tail.block] = [session]
            return
        same.append(session)
        if len(same) > MOST_TAILS:
            same.pop(0).tail = None

    def _unset_tail(self, session: Session) -> None:
        tail, session.tail = session.tail, None
        if tail is not None:
            same = self._by_tail[tail.block]
            if len(same) == 1:
                del self._by_tail[tail.block]
            else:
                same.remove(session)

    def _end(self, session: Session) -> None:
        """It is over while it was active."""
        self._charge_active(session, -session.counted)
        self._drop(session)

    def _drop(self, session: Session) -> None:
        """Forget one that nothing is charged for."""
        self.count -= 1
        session.books = None
        self._unset_tail(session)
        if session.key and self._by_key.get(session.key) is session:
            del self._by_key[session.key]

    def _forget_one(self) -> None:
        for b in reversed(range(BINS)):
            row = self._idle[b]
            while row:
                session, pause = row.popleft()
                if session.pause == pause and session.bin == b:
                    self._charge_idle(session, -session.counted)
                    session.bin = -1
                    self.idle_count -= 1
                    self._drop(session)
                    return
