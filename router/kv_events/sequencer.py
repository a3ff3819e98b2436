"""One engine rank's batches in order, whatever the network loses: no sockets here.

Live batches carry sequence numbers. A gap is filled from the engine's replay buffer. Whether the
engine is still the one it was is checked by the last batch that was applied: the replay must have
it, byte for byte, under the same number. If not, it restarted, and its cache is empty as far as the
replay from 0 does not tell otherwise. When the buffer does not reach back far enough, what the
engine holds is not known and is learned anew.

A replay may have holes and no end: vLLM sends it through a ROUTER socket, which drops what does not
fit in the 1,000 messages it keeps for a peer. As long as it brings something, what it left out is
asked for again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

import xxhash

from router.kv_events.decode import Batch, decode

log = logging.getLogger(__name__)

REPLAY_END = b"\xff" * 8
"""The sequence number of the last message of a replay."""
MAX_WAITING_BATCHES = 100_000
"""The most live batches that wait while a replay is under way."""


class BatchHandler(Protocol):
    """Receives an engine's batches in order."""

    def apply(self, batch: Batch) -> None:
        """Apply the batch that follows the last one."""

    def empty(self, *, complete: bool) -> None:
        """With `complete` the engine's cache is empty; otherwise its contents are unknown."""

    def current(self) -> None:
        """Called when `EventSequencer.current` has changed."""


class EventSequencer:
    """The mutable state: the next number, the last batch's digest, and live batches that wait for
    a replay."""

    def __init__(self, name: str, handler: BatchHandler) -> None:
        self._name = name
        self._handler = handler
        self.ask: Callable[[int], bool] = _nobody
        """ask(n) requests a replay from number n on, and ends an earlier one; False when there is
        nobody to ask."""
        self._next = 0
        self._last = 0
        """Digest of the batch before _next."""
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._replaying = False
        self._checked = False
        """The replay under way has shown the engine to be the same."""
        self._asked_at = 0
        """_next when the replay under way was asked for."""
        self._connected = False
        self._doubtful = True
        """Batches are missing, or the engine may be another one."""
        self._told_current = False
        self._heard = False
        """A live batch came since the last verify."""
        self.gaps = 0
        self.restarts = 0
        self.rebuilds = 0
        """Times that a replay did not reach back far enough."""
        self.cuts = 0
        """Replays with a hole or without an end."""
        self.faults = 0
        """Batches, and messages around them, that could not be read."""
        self._told_malformed = ""

    @property
    def current(self) -> bool:
        """Whether the engine is connected and no batch is known to be missing."""
        return self._connected and not self._doubtful

    @property
    def next(self) -> int:
        """The number that the next batch to be applied will have."""
        return self._next

    @property
    def replaying(self) -> bool:
        """Whether a replay is under way."""
        return self._replaying

    def connected(self) -> None:
        """The connection is there, or is there again: catch up and see that nothing changed."""
        self._connected = self._doubtful = True
        self._catch_up()
        self._tell()

    def disconnected(self) -> None:
        """Called when the connection to the engine is lost."""
        self._connected = False
        self._tell()

    def _tell(self) -> None:
        now = self._connected and not self._doubtful
        if now != self._told_current:
            self._told_current = now
            self._handler.current()

    def verify(self) -> None:
        """Check for lost batches. Call this now and then: otherwise a batch lost just before a
        silence would not be noticed."""
        if self._connected and not self._heard:
            self._catch_up()
        self._heard = False

    def restarted(self) -> None:
        """Called when the engine is known to have restarted: all its earlier events are void."""
        self._forget()
        self._waiting.clear()
        self._doubtful = True
        if self._connected:
            self._begin_replay()
        self._tell()

    def live(self, number: int, payload: bytes) -> None:
        """Take in a batch that the engine has just published."""
        self._heard = True
        if self._replaying:
            if self._waiting and number <= self._waiting[-1][0]:
                self._waiting.clear()  # it restarted while a replay was under way
            if len(self._waiting) < MAX_WAITING_BATCHES:
                self._waiting.append((number, payload))
        elif number == self._next:
            self._take(number, payload)
        else:
            if number > self._next:
                self.gaps += 1
                log.info(
                    "%s: KV events %d to %d were lost, asking for replay",
                    self._name,
                    self._next,
                    number - 1,
                )
            self._waiting.append((number, payload))
            self._doubtful = True
            self._catch_up()
            self._tell()

    def malformed(self, what: str) -> None:
        """A message came that is none of this protocol. Where a batch is lost by it, the numbers
        of the others tell. what: for the log, which has each kind once."""
        self.faults += 1
        if what != self._told_malformed:
            self._told_malformed = what
            log.warning("%s: its KV event sockets bring what is left out: %s", self._name, what)

    def replayed(self, number: int, payload: bytes) -> None:
        """Take in one batch of a replay."""
        if not self._replaying:
            return
        if not self._checked:
            if self._next and number == self._next - 1 and _digest(payload) == self._last:
                self._checked = True
                return
            if self._next and number >= self._next:
                self._lost(f"its replay buffer begins at {number}")
                self._next = number
            elif self._next:
                self._engine_restarted()
                if number:  # asked from there on, and now wanted from the first
                    self._begin_replay()
                    return
                self._handler.empty(complete=True)
            elif number:
                self._lost(f"its replay buffer begins at {number}")
                self._next = number
            else:
                self._handler.empty(complete=True)
            self._checked = True
        if number == self._next:
            self._take(number, payload)
        elif number > self._next and not self.ask_again():
            self._lost(f"the replay left out {self._next} to {number - 1}")
            self._take(number, payload)

    def replay_ended(self) -> None:
        """Called when the engine has sent the whole replay."""
        if not self._replaying:
            return
        if not self._checked and self._next:
            self._engine_restarted()  # it does not have the last batch that it sent
            self._begin_replay()
            return
        self._replaying = False
        waiting = self._waiting
        if not self._checked:
            if waiting and waiting[0][0]:
                self._lost("it has no replay buffer")
                self._next = waiting[0][0]
            else:
                self._handler.empty(complete=True)
        while waiting:
            number, payload = waiting[0]
            if number > self._next:
                self._doubtful = True
                if self.ask_again():
                    return
                self._lost(f"events {self._next} to {number - 1} are nowhere to be had")
            waiting.popleft()
            if number >= self._next:
                self._take(number, payload)
        self._doubtful = False
        self._tell()

    def ask_again(self) -> bool:
        """Ask for what the replay under way left out. False when it brought nothing new."""
        if self._next == self._asked_at:
            return False
        self.cuts += 1
        self._begin_replay()
        return True

    def replay_failed(self, why: str) -> None:
        """There is no replay. What the engine holds is not known; go on with the live batches."""
        if not self._replaying:
            return
        self._replaying = self._doubtful = False
        self._lost(why)
        while self._waiting:
            self._take(*self._waiting.popleft())
        self._tell()

    def _catch_up(self) -> None:
        if not self._replaying:
            self._begin_replay()

    def _begin_replay(self) -> None:
        self._replaying = True
        self._checked = False
        self._asked_at = self._next
        if not self.ask(max(self._next - 1, 0)):
            self.replay_failed("it has no replay socket")

    def _take(self, number: int, payload: bytes) -> None:
        self._next = number + 1
        self._last = _digest(payload)
        try:
            batch = decode(payload)
        except ValueError as error:
            self.faults += 1
            log.warning("%s: KV event batch %d cannot be read: %s", self._name, number, error)
            self._handler.empty(complete=False)
            return
        self._handler.apply(batch)

    def _lost(self, why: str) -> None:
        self.rebuilds += 1
        log.warning("%s: what its KV cache holds is learned anew: %s", self._name, why)
        self._handler.empty(complete=False)

    def _engine_restarted(self) -> None:
        self.restarts += 1
        log.warning("%s: its KV events begin anew, it restarted", self._name)
        self._forget()

    def _forget(self) -> None:
        self._next = 0
        self._last = 0
        self._handler.empty(complete=False)


def _nobody(_: int) -> bool:
    return False


def _digest(payload: bytes) -> int:
    digest: int = xxhash.xxh3_64_intdigest(payload)
    return digest
