"""The access log: one JSON line for each finished request.

A line is made at once, which takes a few microseconds, and appended to a list; a thread that does
nothing but write takes what has gathered a few times a second. Were the thread to make the lines,
it
would hold the interpreter while requests wait. A reader that stops reading fills the pipe, then the
list, and then lines are dropped and counted; requests never wait. Prompts, keys and headers are
not in
the log; the session's key is hashed. docs/access-log.md describes the fields.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import select
import sys
import threading
from array import array
from collections import deque
from typing import Final

import numpy as np

from router.telemetry.record import Finished
from router.types import Chain

log = logging.getLogger(__name__)

PAUSE: Final = 0.2
"""Seconds between two batches."""
EXIT_SECONDS: Final = 2.0
"""How long close() waits for a reader that does not read."""
_MOST_QUOTED: Final = 4096


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
        self._waiting: deque[str] = deque()
        self._quoted: dict[str, str] = {}
        self._stop = threading.Event()
        self._abandon = threading.Event()
        self._complained = False
        self._secret = os.urandom(16)
        # An odd factor permutes the 64-bit numbers: equal blocks stay equal, others stay different.
        self._factor = int.from_bytes(os.urandom(8), "little") | 1
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
        """Log a request, or not, as the share has it.

        chain and size (canonical bytes) of the prompt are logged only while `blocks` is set.
        """
        share = self.share
        if share < 1.0 and random.random() >= share:
            return
        if len(self._waiting) >= self._most:
            self._refused += 1
            return
        self._waiting.append(self._line(done, chain if self.blocks else None, size))

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
            take = self._waiting.popleft
            if lines := [take() for _ in range(len(self._waiting))]:
                self._write("".join(lines).encode("utf-8", "replace"))

    def _write(self, lines: bytes) -> None:
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

    def _line(self, done: Finished, chain: Chain | None, size: int) -> str:
        """Fields that are zero, empty, false or not known are left out."""
        quote = self._quote
        line = (
            f'{{"time":{done.started:.6f},"id":"{done.request_id}","api":"{done.api}",'
            f'"method":"{done.method}","path":{quote(done.path)},"status":{done.status},'
            f'"outcome":"{done.outcome}","duration":{done.duration:.6f}'
        )
        if done.model:
            line += f',"model":{quote(done.model)}'
        if done.slot >= 0:
            line += f',"replica":{quote(done.replica)}'
            if done.policy:
                line += (
                    f',"overhead":{done.overhead:.6f},"policy":{quote(done.policy)},'
                    f'"reason":{quote(done.reason)}'
                )
            if done.ttft >= 0.0:
                line += f',"ttft":{done.ttft:.6f}'
            if done.prompt_tokens:
                line += (
                    f',"prompt_tokens":{done.prompt_tokens},"output_tokens":{done.output_tokens}'
                )
            if done.delivered >= 0:
                line += f',"delivered":{done.delivered}'
            if done.available:
                line += f',"available":{done.available:.0f},"chosen":{done.chosen:.0f}'
            if done.predicted:
                line += f',"predicted":{done.predicted:.0f}'
        if done.bytes_in:
            line += f',"bytes_in":{done.bytes_in}'
        if done.bytes_out:
            line += f',"bytes_out":{done.bytes_out}'
        if done.stream:
            line += ',"stream":true'
        if done.retries:
            line += f',"retries":{done.retries}'
        if done.key:
            line += f',"session":"{self._session(done.key)}"'
        if chain is not None:
            line += f',"prompt_bytes":{size},"blocks":{json.dumps(self._ids(chain))}'
        return line + "}\n"

    def _quote(self, text: str) -> str:
        """A JSON string. Paths and models are few, so their spelling is remembered."""
        found = self._quoted.get(text)
        if found is None:
            found = json.dumps(text)
            if len(self._quoted) >= _MOST_QUOTED:
                self._quoted.clear()
            self._quoted[text] = found
        return found

    def _session(self, key: str) -> str:
        # surrogatepass: the key is a client's, and may hold what UTF-8 does not allow.
        raw = key.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(raw, digest_size=8, key=self._secret).hexdigest()

    def _ids(self, chain: array[int]) -> list[int]:
        """Block ids of 53 bits, which every JSON reader keeps exact."""
        ids = np.frombuffer(chain, dtype=np.uint64) * np.uint64(self._factor)
        found: list[int] = (ids >> np.uint64(11)).tolist()
        return found
