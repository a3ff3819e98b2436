"""Holds requests for a model of which no replica is usable, but one may be soon: it is scaled from
zero, asleep, or starts again.

One task looks at the fleet for all of them: thousands that each looked after each change would take
the event loop's time from those that are served.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from router.config import Settings
from router.fleet.fleet import Fleet
from router.queue.queue import BODIES_SHARE
from router.telemetry.telemetry import OTHER, Live

LOOK_AGAIN_S: Final = 1.0
"""Seconds after which the fleet is looked at although nothing of it has changed: a replica that did
not wake up is to be asked again, or another one."""


class Held:
    """A request that is held."""

    __slots__ = ("_holding", "go_on", "model", "prompt_bytes", "ready", "shown", "size", "timer")

    def __init__(
        self,
        holding: Holding,
        model: str,
        sizes: tuple[int, int],
        ready: Callable[[], bool],
        go_on: Callable[[], None],
    ) -> None:
        self._holding = holding
        self.model = model
        self.shown = model
        """The model as metrics have it."""
        self.prompt_bytes = sizes[1]
        self.size = sum(sizes)
        """Bytes that it takes."""
        self.ready = ready
        """Whether there is a replica for it."""
        self.go_on = go_on
        self.timer: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        """Hold it no longer."""
        self._holding.leave(self)


class Holding:
    """The requests that are held. Its state: `models`, those that wait, and whether they are let
    go."""

    __slots__ = (
        "_bytes",
        "_count",
        "_fleet",
        "_live",
        "_looking",
        "_released",
        "_waiting",
        "models",
        "settings",
        "wake",
    )

    def __init__(self, settings: Settings, fleet: Fleet, live: Live) -> None:
        self.settings = settings
        self._fleet = fleet
        self._live = live
        self.wake: Callable[[str], None] | None = None
        """Wakes a replica of a model; None where the settings do not want that."""
        self.models: dict[str, int] = {}
        """Model -> requests that are held, where there are any. Names that clients may have made up
        are counted together."""
        live.held = self.models
        self._waiting: dict[str, dict[Held, None]] = {}
        """By model, in the order in which they came."""
        self._count = 0
        self._bytes = 0
        """What those that wait take."""
        self._looking: asyncio.Task[None] | None = None
        """Looks at the fleet while somebody waits."""
        self._released = False

    def hold(
        self,
        model: str,
        serving: int,
        sizes: tuple[int, int],
        ready: Callable[[], bool],
        go_on: Callable[[], None],
    ) -> Held | None:
        """Hold a request until there is a replica for it, at most `hold_timeout`.

        serving: mask of the replicas that serve its model, usable or not. sizes: bytes of its body,
        and of its prompt as it is kept beside it. ready: whether a replica is there. go_on is
        called then, and when time ran out; not within this call. None where it may not wait.
        """
        settings, fleet = self.settings, self._fleet
        if not settings.hold_timeout or self._released:
            return None
        if not serving and not fleet.may_come(model):
            return None
        held = Held(self, model, sizes, ready, go_on)
        # Models that are served need the rest of the memory.
        most = BODIES_SHARE * settings.body_memory
        if self._count >= settings.queue_limit or self._bytes + held.size > most:
            return None
        if not serving and not fleet.expects(model):
            held.shown = OTHER
        self.models[held.shown] = self.models.get(held.shown, 0) + 1
        self._waiting.setdefault(model, {})[held] = None
        self._count += 1
        self._bytes += held.size
        self._live.body_bytes += held.prompt_bytes
        loop = asyncio.get_running_loop()
        held.timer = loop.call_later(settings.hold_timeout, self._let_go, held)
        if self._looking is None:
            self._looking = loop.create_task(self._look_on(), name="held requests")
        elif self.wake is not None:
            self.wake(model)
        return held

    def leave(self, held: Held) -> bool:
        """It is held no longer. Whether it was until now."""
        waiting = self._waiting.get(held.model)
        if waiting is None or held not in waiting:
            return False
        del waiting[held]
        if not waiting:
            del self._waiting[held.model]
        self._count -= 1
        self._bytes -= held.size
        self._live.body_bytes -= held.prompt_bytes
        self.models[held.shown] -= 1
        if not self.models[held.shown]:
            del self.models[held.shown]
        if held.timer is not None:
            held.timer.cancel()
        if not self._waiting and self._looking is not None:
            self._looking.cancel()
            self._looking = None
        return True

    def release(self) -> None:
        """The router stops: nobody is held any longer."""
        self._released = True
        self._look()

    def _let_go(self, held: Held) -> None:
        if self.leave(held):
            held.go_on()

    async def _look_on(self) -> None:
        while True:
            self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await self._fleet.changed()

    def _look(self) -> None:
        for model, waiting in list(self._waiting.items()):
            if self._released or self._is_settled(model):
                found = list(waiting)
            else:
                asked = self._may_be_asked(model)
                found = [held for held in waiting if asked and held.ready()]
                if not found and self.wake is not None:
                    self.wake(model)
            for held in found:
                self._let_go(held)

    def _may_be_asked(self, model: str) -> bool:
        """Whether some replica of it can be."""
        fleet = self._fleet
        return bool(fleet.serving(model) & fleet.usable or fleet.last_resort(model))

    def _is_settled(self, model: str) -> bool:
        """Whether waiting makes no difference: all replicas have told what they serve, and it is
        not this; or one is there to be asked for an adapter."""
        fleet = self._fleet
        if fleet.serving(model) or fleet.expects(model):
            return False
        resolved = self.settings.lora_resolver and fleet.usable
        return bool(resolved) or not fleet.may_come(model)
