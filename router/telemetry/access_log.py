"""The access log: one JSON line for each finished request, written by a thread.

The event loop appends to a deque and goes on. The thread takes what has gathered a few times a
second, encodes and writes it. A reader that stops reading fills the pipe, then the deque, and then
lines are dropped and counted; requests never wait. Prompts, keys and headers are not in the log;
the session's key is hashed. docs/access-log.md describes the fields.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import select
import sys
import threading
from array import array
from collections import deque
from typing import Final

import msgspec
import numpy as np

from router.insight.record import Finished
from router.types import Chain

log = logging.getLogger(__name__)

PAUSE: Final = 0.2
"""Seconds between two batches."""
BATCH: Final = 512
"""Most lines encoded before they are written, so that the thread holds the interpreter shortly."""
EXIT_SECONDS: Final = 2.0
"""How long close() waits for a reader that does not read."""


class Line(msgspec.Struct, gc=False, omit_defaults=True):
    """A line of the log. Times in seconds, sizes in bytes, reuse in tokens (`Finished`)."""

    time: float
    """Unix time at which the request came."""
    id: str
    api: str
    method: str
    path: str
    status: int
    outcome: str
    duration: float
    model: str = ""
    replica: str = ""
    stream: bool = False
    retries: int = 0
    overhead: float | None = None
    ttft: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    available: int = 0
    chosen: int = 0
    predicted: int = 0
    delivered: int | None = None
    policy: str = ""
    reason: str = ""
    session: str = ""
    """A keyed hash: the same for the same session as long as this process runs."""
    prompt_bytes: int = 0
    """Canonical bytes of the prompt, which the blocks divide."""
    blocks: list[int] | None = None


class AccessLog:
    """Writes a share of the finished requests to a file descriptor, as JSON lines."""

    def __init__(
        self,
        share: float = 1.0,
        *,
        blocks: bool = False,
        fd: int | None = None,
        most_waiting: int = 20_000,
    ) -> None:
        """share of the requests logged, 0 for none; fd: where to, standard output by default."""
        self.share = share
        self.blocks = blocks
        """Whether lines carry block ids; callers may then pass chains."""
        # Counted apart, since each is written by one thread: the caller's, and the log's own.
        self._refused = 0
        self._lost = 0
        self._fd = sys.stdout.fileno() if fd is None and share > 0 else fd
        self._most = most_waiting
        self._waiting: deque[tuple[Finished, Chain | None, int]] = deque()
        self._stop = threading.Event()
        self._abandon = threading.Event()
        self._complained = False
        self._secret = os.urandom(16)
        # An odd factor permutes the 64-bit numbers: equal blocks stay equal, others stay different.
        self._factor = int.from_bytes(os.urandom(8), "little") | 1
        self._encoder = msgspec.json.Encoder()
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Lines given up."""
        return self._refused + self._lost

    def start(self) -> None:
        """Start the thread, unless the share is 0."""
        if self.share > 0:
            self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
            self._thread.start()

    def add(self, done: Finished, chain: Chain | None = None, size: int = 0) -> None:
        """Log a request, or not, as the share has it. Neither it nor its chain may change any more.

        chain and size (canonical bytes) of the prompt are logged only while `blocks` is set.
        """
        share = self.share
        if share < 1.0 and random.random() >= share:
            return
        waiting = self._waiting
        if len(waiting) >= self._most:
            self._refused += 1
            return
        waiting.append((done, chain if self.blocks else None, size))

    def close(self) -> None:
        """Write what is waiting and stop. Blocks for `EXIT_SECONDS` at most."""
        thread = self._thread
        if thread is None:
            return
        self._stop.set()
        thread.join(EXIT_SECONDS)
        self._abandon.set()
        thread.join(2 * PAUSE)
        self._thread = None
        self._refused += len(self._waiting)
        self._waiting.clear()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(PAUSE)
            while self._waiting and not self._abandon.is_set():
                self._write(self._encode())

    def _encode(self) -> bytearray:
        """Take up to `BATCH` lines."""
        waiting = self._waiting
        lines = bytearray()
        for _ in range(min(BATCH, len(waiting))):
            done, chain, size = waiting.popleft()
            self._encoder.encode_into(self._line(done, chain, size), lines, len(lines))
            lines += b"\n"
        return lines

    def _write(self, lines: bytearray) -> None:
        """Write it all, waiting for a slow reader, or count what was given up."""
        assert self._fd is not None
        # Not just write(): standard output may be non-blocking, and close() must get through.
        ready = select.poll()
        ready.register(self._fd, select.POLLOUT)
        rest = memoryview(lines)
        try:
            while rest and not self._abandon.is_set():
                if ready.poll(PAUSE * 1000):
                    # A pipe that is writable takes this much without blocking (pipe(7), PIPE_BUF).
                    rest = rest[os.write(self._fd, rest[: select.PIPE_BUF]) :]
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.error("cannot write the access log: %s", error)
        self._lost += bytes(rest).count(b"\n")

    def _line(self, done: Finished, chain: Chain | None, size: int) -> Line:
        return Line(
            time=round(done.started, 6),
            id=done.request_id,
            api=done.api,
            method=done.method,
            path=done.path,
            status=done.status,
            outcome=done.outcome,
            duration=round(done.duration, 6),
            model=done.model,
            replica=done.replica,
            stream=done.stream,
            retries=done.retries,
            overhead=round(done.overhead, 6) if done.overhead >= 0.0 else None,
            ttft=round(done.ttft, 6) if done.ttft >= 0.0 else None,
            bytes_in=done.bytes_in,
            bytes_out=done.bytes_out,
            prompt_tokens=done.prompt_tokens,
            output_tokens=done.output_tokens,
            available=int(done.available),
            chosen=int(done.chosen),
            predicted=int(done.predicted),
            delivered=done.delivered if done.delivered >= 0 else None,
            policy=done.policy,
            reason=done.reason,
            session=self._session(done.key) if done.key else "",
            prompt_bytes=size if chain is not None else 0,
            blocks=self._ids(chain) if chain is not None else None,
        )

    def _session(self, key: str) -> str:
        # surrogatepass: the key is a client's, and may hold what UTF-8 does not allow.
        raw = key.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(raw, digest_size=8, key=self._secret).hexdigest()

    def _ids(self, chain: array[int]) -> list[int]:
        """Block ids of 53 bits, which every JSON reader keeps exact."""
        ids = np.frombuffer(chain, dtype=np.uint64) * np.uint64(self._factor)
        found: list[int] = (ids >> np.uint64(11)).tolist()
        return found
