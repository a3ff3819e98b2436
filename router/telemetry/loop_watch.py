"""How late the event loop is, and who held it.

A timer of the loop is due every `BEAT_S` seconds. A thread looks whether it is late, and if so in
which function the loop's thread is. The mutable state: when the timer is due next, which the loop
writes, and who held it how often, which the thread writes.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from time import monotonic
from types import FrameType
from typing import Final

from router.telemetry.histogram import LOOP_DELAY_BUCKETS, Histogram

BEAT_S = 0.5
HELD_S = 0.1
"""A timer that is later than this tells of somebody who held the loop."""
_LOOK_INTERVAL_S = 0.25
"""Waking costs 80 us: ten beats and twenty looks a second took 2% of the CPU of 1,500 requests."""
_STOP_TIMEOUT_S: Final = 1.0


class LoopWatch:
    """Watches the event loop that runs when it is started."""

    def __init__(self) -> None:
        self.delay = Histogram.over(LOOP_DELAY_BUCKETS)
        self.holds: dict[str, int] = {}
        """Module and function -> times it held the loop."""
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch the running loop, on whose thread this is called."""
        self._loop = asyncio.get_running_loop()
        self._arm()
        self._thread = threading.Thread(
            target=self._look, args=(threading.get_ident(),), name="loop-watch", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT_S)

    def _arm(self) -> None:
        self._due = monotonic() + BEAT_S
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    def _beat(self) -> None:
        # A loop may count in whole milliseconds, and be early by a part of one.
        self.delay.observe(max(0.0, monotonic() - self._due))
        self._arm()

    def _look(self, thread: int) -> None:
        told = 0.0
        while not self._stopping.wait(_LOOK_INTERVAL_S):
            due = self._due
            if monotonic() - due > HELD_S and due != told:
                told = due
                where = _place(sys._current_frames().get(thread))
                self.holds[where] = self.holds.get(where, 0) + 1


def _place(frame: FrameType | None) -> str:
    """The innermost function of the router, which called whatever holds the loop."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("router."):
            return f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "other"
