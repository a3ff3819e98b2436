"""The access log: one JSON line for each finished request, or a short one for people at a terminal.

Lines are made on the event loop, some at a time: the code is then in the processor's caches, and a
line takes less than when it is made within its request. They are queued for a thread that does
nothing but write (`router.telemetry.lines`). Were the thread to make the lines, it would hold the
interpreter while requests wait. Prompts, keys and headers are not in the log; the session's key is
hashed. docs/reference/access-log.md describes the fields.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
from array import array
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from router.telemetry.lines import MAX_LINES, Lines
from router.telemetry.logs import clock, printable
from router.telemetry.record import Finished, Outcome
from router.types import Chain

log = logging.getLogger(__name__)

STANDARD_OUTPUT: Final = 1
_MOST_QUOTED: Final = 4096
_BATCH: Final = 32
"""Requests whose lines are made at once: that holds the event loop for 0.2 ms."""
_BATCH_DELAY_S: Final = 0.1
"""Seconds that a request waits for others, at most."""

Later: TypeAlias = Callable[[float, Callable[[], None]], object]
"""Has something called on the event loop after so many seconds."""


class _Line(msgspec.Struct, gc=False, omit_defaults=True):
    """A line's fields. Those that are zero, empty, false or not known are left out."""

    time: float
    id: str
    api: str
    method: str
    path: msgspec.Raw
    status: int
    outcome: str
    duration: float
    model: msgspec.Raw | UnsetType = UNSET
    replica: str | UnsetType = UNSET
    overhead: float | UnsetType = UNSET
    policy: str = ""
    reason: str | UnsetType = UNSET
    overflow: str = ""
    overflow_why: str = ""
    overflow_money: float | UnsetType = UNSET
    ttft: float | UnsetType = UNSET
    prompt_tokens: int = 0
    output_tokens: int | UnsetType = UNSET
    delivered: int = -1
    available: int | UnsetType = UNSET
    chosen: int | UnsetType = UNSET
    predicted: int = 0
    miss_reason: str = ""
    missed_tokens: int = 0
    changed_part: msgspec.Raw | UnsetType = UNSET
    changed_at: int | UnsetType = UNSET
    queued: float | UnsetType = UNSET
    waited_at: str = ""
    priority: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    stream: bool = False
    retries: int = 0
    tenant: msgspec.Raw | UnsetType = UNSET
    key: str = ""
    session: str = ""
    prompt_bytes: int | UnsetType = UNSET
    blocks: list[int] | UnsetType = UNSET


_encode = msgspec.json.Encoder().encode


def _to_us(seconds: float) -> float:
    """Without what is finer than a microsecond, which is noise that takes digits."""
    return round(seconds * 1e6) / 1e6


class AccessLog:
    """Writes a share of the finished requests to a file descriptor, as JSON lines."""

    def __init__(
        self,
        share: float,
        *,
        blocks: bool = False,
        fd: int = STANDARD_OUTPUT,
        most_waiting: int = MAX_LINES,
        people: bool = False,
    ) -> None:
        """share of the requests logged, 0 for none; people: text rather than JSON."""
        self.share = share
        self.blocks = blocks
        """Whether lines carry block ids; callers may then pass chains."""
        self._people = people
        self._lines = Lines(fd, "access-log", most=most_waiting, failed=_complain)
        self._started = False
        self._later: Later | None = None
        self._batch: deque[tuple[Finished, Chain | None, int]] = deque()
        self._due = False
        """The batch will be taken after a while, however small it is."""
        self._quoted: dict[str, msgspec.Raw] = {}
        self.secret = os.urandom(16)
        """Sessions are named by it, so that no key can be guessed from a log."""
        # An odd factor permutes the 64-bit numbers: equal blocks stay equal, others stay different.
        self._factor = int.from_bytes(os.urandom(8), "little") | 1

    @property
    def dropped(self) -> int:
        """Lines dropped because the reader was too slow, or writing failed."""
        return self._lines.dropped

    def start(self, later: Later | None = None) -> None:
        """Start the thread, unless the share is 0 or it runs.

        later: the event loop's; without, each line is made at once.
        """
        self._later = later
        if self.share > 0 and not self._started:
            self._started = True
            self._lines.start()

    def add(self, done: Finished, chain: Chain | None = None, size: int = 0) -> None:
        """Log a request, or not, as the share has it. The record must not change any more.

        chain and size (canonical bytes) of the prompt are logged only while `blocks` is set.
        """
        share = self.share
        if share < 1.0 and random.random() >= share:
            return
        batch = self._batch
        batch.append((done, chain if self.blocks else None, size))
        if self._later is None or len(batch) >= _BATCH:
            self._make_lines()
        elif not self._due:
            self._due = True
            self._later(_BATCH_DELAY_S, self._delay_over)

    def close(self) -> None:
        """Write what is waiting and stop. Blocks for a while at most, where nobody reads."""
        self._make_lines()
        self._lines.close()
        self._started = False

    def _delay_over(self) -> None:
        self._due = False
        self._make_lines()

    def _make_lines(self) -> None:
        batch, lines = self._batch, self._lines
        while batch:
            done, chain, size = batch.popleft()
            if not lines.full():
                lines.add(_text(done) if self._people else self._line(done, chain, size))

    def _line(self, done: Finished, chain: Chain | None, size: int) -> str:
        line = _Line(
            _to_us(done.started),
            done.request_id,
            done.api,
            done.method,
            self._quote(done.path),
            done.status,
            done.outcome,
            _to_us(done.duration),
        )
        if done.model:
            line.model = self._quote(done.model)
        if done.slot >= 0:
            line.replica = done.replica
            if done.policy:
                line.overhead = _to_us(done.overhead)
                line.policy, line.reason = done.policy, done.reason
            line.delivered = done.delivered
            if done.available:
                line.available, line.chosen = round(done.available), round(done.chosen)
            line.predicted = round(done.predicted)
        if done.overflow:
            line.overflow, line.overflow_why = done.overflow, done.overflow_why
            line.overflow_money = _to_us(done.overflow_money)
        if done.ttft >= 0.0:
            line.ttft = _to_us(done.ttft)
        if done.prompt_tokens:
            line.prompt_tokens, line.output_tokens = done.prompt_tokens, done.output_tokens
        if done.miss_reason:
            line.miss_reason, line.missed_tokens = done.miss_reason, done.missed_tokens
            if done.changed_part:
                line.changed_part = self._quote(done.changed_part)
                line.changed_at = done.changed_at
        if done.queued >= 0.0:
            line.queued, line.waited_at = _to_us(done.queued), done.waited_at
            line.priority = done.priority
        line.bytes_in, line.bytes_out = done.bytes_in, done.bytes_out
        line.stream, line.retries = done.stream, done.retries
        if done.tenant:
            line.tenant, line.key = self._quote(done.tenant), done.key_id
        if done.key:
            line.session = session_name(done.key, self.secret)
        if chain is not None:
            line.prompt_bytes, line.blocks = size, self._ids(chain)
        return _encode(line).decode() + "\n"

    def _quote(self, text: str) -> msgspec.Raw:
        """A client's words in ASCII, which a reader of lines cannot split. Paths and models are
        few, so their spelling is remembered."""
        found = self._quoted.get(text)
        if found is None:
            found = msgspec.Raw(json.dumps(text))
            if len(self._quoted) >= _MOST_QUOTED:
                self._quoted.clear()
            self._quoted[text] = found
        return found

    def _ids(self, chain: array[int]) -> list[int]:
        """Block ids of 53 bits, which every JSON reader keeps exact."""
        ids = np.frombuffer(chain, dtype=np.uint64) * np.uint64(self._factor)
        found: list[int] = (ids >> np.uint64(11)).tolist()
        return found


def _complain(error: OSError) -> None:
    log.error("cannot write the access log: %s", error)


def _text(done: Finished) -> str:
    """A line for people: what was asked, what came of it, how long it took, who answered."""
    line = f"{clock(done.started)} {done.status or '---'} {done.method} {done.path}"
    if done.model:
        line += f" {done.model}"
    if done.outcome != Outcome.OK:
        line += f", {done.outcome}"
    line += f", {done.duration:.3f} s"
    if done.queued >= 0.0:
        line += f" ({done.queued:.3f} of them in the queue)"
    if done.slot >= 0:
        line += f", by {done.replica}"
    if done.overflow:
        line += f", by overflow to {done.overflow} ({done.overflow_why})"
    if done.prompt_tokens:
        cached = f", {done.delivered:,} of them cached" if done.delivered >= 0 else ""
        line += f", {done.prompt_tokens:,} tokens in{cached}, {done.output_tokens:,} out"
    return printable(line) + "\n"


def session_name(key: str, secret: bytes) -> str:
    """What stands for a session's key outside of the process."""
    # surrogatepass: the key is a client's, and may hold what UTF-8 does not allow.
    raw = key.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(raw, digest_size=8, key=secret).hexdigest()
