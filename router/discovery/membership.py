"""Keeps a fleet in step with what a source finds.

The mutable state is `_members`, by replica name: who was let in by discovery, and who is on the way
out. Replicas that were listed by hand or registered on the admin port are never touched.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from router.discovery.target import Target
from router.fleet.fleet import Fleet
from router.fleet.replica import Replica, parse_address

log = logging.getLogger(__name__)

LEAVE_CHECK_INTERVAL_S = 0.25
"""Seconds between two looks at whether a replica that leaves is done."""
MAX_LEAVING_S = 600.0
"""Seconds after which one that leaves is forgotten whatever is in flight on it. Its streams are not
cut by that."""


@dataclass(slots=True)
class _Member:
    replica: Replica
    identity: str
    drained: bool = False
    """By us: what an operator drained is the operator's."""
    leaving_since: float | None = None


# A source tells all of its targets each time one changes.
@lru_cache(maxsize=16_384)
def _name(url: str) -> str:
    return parse_address(url).name


class Membership:
    """Lets replicas in and out of a fleet. Used on the event loop only.

    `linger` is how long one that was not found any more is kept, drained, though idle: a source
    that may miss one now and then gives it time to come back with its cache.
    """

    def __init__(
        self, fleet: Fleet, linger: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fleet = fleet
        self._linger = linger
        self._clock = clock
        self._members: dict[str, _Member] = {}
        self._refused: set[str] = set()
        self._seeing_off: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Replicas here by discovery, those on the way out included."""
        return len(self._members)

    def apply(self, targets: Sequence[Target]) -> list[str]:
        """These are all there are. Returns what is wrong with targets that cannot be used."""
        problems = []
        seen: set[str] = set()
        for target in targets:
            try:
                name = _name(target.url)
            except ValueError as error:
                problems.append(str(error))
                continue
            seen.add(name)
            member = self._members.get(name)
            if member is not None and member.identity != target.identity:
                log.info("replica %s: another one has its address now", name)
                self._remove(name)
                member = None
            if member is not None:
                self._update(member, target)
            elif target.ready and not target.leaving:
                self._add(name, target)
        for name, member in self._members.items():
            if name not in seen:
                self._leave(member)
        self._see_off()
        return problems

    def close(self) -> None:
        """Change nothing any more."""
        if self._seeing_off is not None:
            self._seeing_off.cancel()
            self._seeing_off = None

    def _add(self, name: str, target: Target) -> None:
        try:
            replica = self._fleet.add(target.url, target.models)
        except ValueError:
            if name not in self._refused:
                self._refused.add(name)
                log.info("replica %s was found and is listed or registered as well: it stays", name)
            return
        replica.by_discovery = True
        log.info("replica %s: found", name)
        self._members[name] = _Member(replica, target.identity)

    def _update(self, member: _Member, target: Target) -> None:
        if target.models:
            self._fleet.set_models(member.replica, target.models)
        if target.leaving:
            self._leave(member)
            return
        member.leaving_since = None
        if target.ready and member.drained:
            member.drained = False
            self._fleet.undrain(member.replica.url)
        elif not target.ready:
            self._drain(member)

    def _leave(self, member: _Member) -> None:
        if member.leaving_since is None:
            member.leaving_since = self._clock()
        self._drain(member)

    def _drain(self, member: _Member) -> None:
        if not member.replica.draining:
            member.drained = True
            self._fleet.drain(member.replica.url)

    def _remove(self, name: str) -> None:
        replica = self._members.pop(name).replica
        self._fleet.remove(replica.url)

    def _see_off(self) -> None:
        """Remove those that are done leaving; look again while there are others."""
        now = self._clock()
        left = False
        for name, member in list(self._members.items()):
            since = member.leaving_since
            if since is None:
                continue
            own = sum(rank.external.own(rank.load) for rank in member.replica.ranks)
            gone_for = now - since
            if (own <= 0 and gone_for >= self._linger) or gone_for >= MAX_LEAVING_S:
                self._remove(name)
            else:
                left = True
        if left and self._seeing_off is None:
            self._seeing_off = asyncio.create_task(self._look_again(), name="replicas leaving")

    async def _look_again(self) -> None:
        await asyncio.sleep(LEAVE_CHECK_INTERVAL_S)
        self._seeing_off = None
        self._see_off()
