"""Lines on their way to a file descriptor whose reader may stop reading: nobody ever waits.

A thread that does nothing but write takes what has gathered. A reader that stops fills the pipe,
then the queue, and then lines are dropped and counted.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

WRITE_INTERVAL_S: Final = 0.2
"""Seconds between two batches, or two looks at a reader that does not read."""
CLOSE_TIMEOUT_S: Final = 2.0
"""How long close() waits for a reader that does not read."""
MAX_LINES: Final = 20_000
MAX_CHARACTERS: Final = 32 << 20


class Lines:
    """A queue of lines and the thread that writes them."""

    def __init__(
        self,
        fd: int,
        name: str,
        *,
        most: int = MAX_LINES,
        at_once: bool = False,
        failed: Callable[[OSError], None] = lambda _: None,
    ) -> None:
        """at_once: wake the thread for each line rather than a few times a second; failed: is told
        the first time writing fails."""
        self.waiting: deque[str] = deque()
        self._fd = fd
        self._name = name
        self._most = most
        self._at_once = at_once
        self._failed = failed
        # Each is written by one side only: whoever adds, or the thread.
        self._refused = self._added = 0
        self._lost = self._taken = 0
        self._wake = threading.Event()
        self._stopping = False
        self._abandoned = False
        self._complained = False
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Lines dropped because the queue was full, or writing failed."""
        return self._refused + self._lost

    def start(self) -> None:
        """Start the thread that writes."""
        self._stopping = self._abandoned = False
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def full(self) -> bool:
        """Whether the next line would be dropped; it is counted as dropped then."""
        if len(self.waiting) < self._most and self._added - self._taken < MAX_CHARACTERS:
            return False
        self._refused += 1
        return True

    def add(self, line: str) -> None:
        """Have this written, its line end included. Not while full()."""
        self._added += len(line)
        self.waiting.append(line)
        if self._at_once:
            self._wake.set()

    def close(self) -> None:
        """Write what is waiting and stop. Blocks for `EXIT_SECONDS` at most."""
        thread = self._thread
        if thread is None:
            return
        self._stopping = True
        self._wake.set()
        thread.join(CLOSE_TIMEOUT_S)
        self._abandoned = True
        thread.join(2 * WRITE_INTERVAL_S)
        self._thread = None
        self._refused += len(self.waiting)
        self.waiting.clear()

    def _run(self) -> None:
        take = self.waiting.popleft
        while True:
            self._wake.wait(None if self._at_once else WRITE_INTERVAL_S)
            self._wake.clear()
            # Looked at before the queue: what was added before close() is in it.
            stopping = self._stopping
            if lines := [take() for _ in range(len(self.waiting))]:
                text = "".join(lines)
                self._taken += len(text)
                self._write(text.encode("utf-8", "backslashreplace"))
            if stopping:
                return

    def _write(self, lines: bytes) -> None:
        """Write it all, waiting for a slow reader, or count what was given up."""
        # Not just write(): the descriptor may be non-blocking, and close() must get through.
        ready = select.poll()
        ready.register(self._fd, select.POLLOUT)
        rest = memoryview(lines)
        try:
            while rest and not self._abandoned:
                if ready.poll(WRITE_INTERVAL_S * 1000):
                    # A pipe that is writable takes this much without blocking (pipe(7), PIPE_BUF).
                    # Up to the end of a line: other processes may write to it as well.
                    end = bytes(rest[: select.PIPE_BUF]).rfind(b"\n") + 1 or select.PIPE_BUF
                    rest = rest[os.write(self._fd, rest[:end]) :]
        except OSError as error:
            if not self._complained:
                self._complained = True
                self._failed(error)
        self._lost += bytes(rest).count(b"\n")
