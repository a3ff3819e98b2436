"""Wakes engines that sleep, for requests that wait for their model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from router.fleet.fleet import Fleet
from router.fleet.replica import Replica
from router.types import slots

log = logging.getLogger(__name__)

AGAIN_AFTER_S: Final = 10.0
"""Seconds until a replica that did not wake up is asked again."""
STILL_ASLEEP_S: Final = 2.0
"""The same for one that said that it has, and sleeps all the same."""
PATIENCE_S: Final = 30.0
"""Seconds after which another replica is woken beside one that has not answered yet."""


class Waker:
    """At most one replica of a model is woken at a time: the others are asked for when it is not
    enough, by those who scale."""

    def __init__(
        self,
        fleet: Fleet,
        call: Callable[[Replica], Awaitable[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """call: wakes one replica. Returns why it could not, empty where it did."""
        self._fleet = fleet
        self._call = call
        self._clock = clock
        self._waking: dict[int, asyncio.Task[None]] = {}
        """By slot."""
        self._since: dict[int, float] = {}
        """Slot -> when it was asked last."""
        self._again: dict[int, float] = {}
        """Slot -> when it may be asked again."""

    def wake(self, model: str) -> None:
        """Wake a replica that serves this model, unless one is being woken."""
        serving, now = self._fleet.serving(model), self._clock()
        if any(
            serving >> slot & 1 and now - self._since[slot] < PATIENCE_S for slot in self._waking
        ):
            return
        for slot in slots(serving):
            replica = self._fleet.replicas[slot]
            if replica is None or not replica.asleep or replica.draining or slot in self._waking:
                continue
            if now >= self._again.get(slot, 0.0):
                self._since[slot] = now
                task = asyncio.get_running_loop().create_task(self._wake(replica))
                self._waking[slot] = task
                task.add_done_callback(partial(self._over, slot))
                return

    def _over(self, slot: int, _: asyncio.Task[None]) -> None:
        del self._waking[slot]

    async def _wake(self, replica: Replica) -> None:
        log.info("replica %s: waking it up, since a request waits for it", replica.name)
        problem = await self._call(replica)
        pause = AGAIN_AFTER_S if problem else STILL_ASLEEP_S
        self._again[replica.slot] = self._clock() + pause
        if problem:
            log.warning("replica %s: does not wake up: %s", replica.name, problem)
        else:
            self._fleet.reread_rest(replica)

    async def stop(self) -> None:
        """Ask for nothing more."""
        tasks = list(self._waking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
