"""Signals besides SIGTERM and SIGINT: none of them may end a router by the system's default."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final

log = logging.getLogger(__name__)

_WITHOUT_MEANING: Final = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def hold() -> None:
    """Ignore them until somebody attends. Early: a router that starts is not to be cut off."""
    for number in (signal.SIGHUP, *_WITHOUT_MEANING):
        signal.signal(number, signal.SIG_IGN)


def attend(
    loop: asyncio.AbstractEventLoop, reload: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """SIGHUP reloads, one after the other; the others are told to have no meaning."""
    running: set[asyncio.Task[None]] = set()
    again = False

    def begin() -> None:
        nonlocal again
        if running:
            again = True
            return
        task = loop.create_task(reload(), name="reload")
        running.add(task)
        task.add_done_callback(ended)

    def ended(task: asyncio.Task[None]) -> None:
        nonlocal again
        running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("reading the settings again failed", exc_info=error)
        if again:
            again = False
            begin()

    def without_meaning(number: signal.Signals) -> None:
        log.info(
            "%s has no meaning here: SIGHUP reads the settings again, SIGTERM stops; logs go to "
            "standard output and standard error, there is nothing to open anew",
            number.name,
        )

    loop.add_signal_handler(signal.SIGHUP, begin)
    for number in _WITHOUT_MEANING:
        loop.add_signal_handler(number, without_meaning, number)
