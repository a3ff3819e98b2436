"""Keeps a fleet in step with what a source finds.

The mutable state is `_members`, by replica name: who was let in by discovery, and who is on the way
out; and what is left to do of what the source told. Replicas that were listed by hand or registered
on the admin port are never touched.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from router.config.address import parse_address
from router.discovery.target import Target
from router.fleet.fleet import Fleet
from router.fleet.replica import Replica

log = logging.getLogger(__name__)

LEAVE_CHECK_INTERVAL_S = 0.25
"""Seconds between two looks at whether a replica that leaves is done."""
ADDED_A_TURN = 8
"""Replicas let in, and begun to watch, in one turn of the event loop: about a millisecond."""
LOOKED_AT_A_TURN = 500
"""Targets looked at in one turn where nothing has changed."""
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
    that may miss one now and then gives it time to come back with its cache. `note` is told what is
    wrong with targets that cannot be used, `settled` each time the fleet is as the source has it.
    """

    def __init__(
        self,
        fleet: Fleet,
        linger: float,
        note: Callable[[str], None],
        settled: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._note = note
        self._settled = settled
        self._linger = linger
        self._clock = clock
        self._members: dict[str, _Member] = {}
        self._refused: set[str] = set()
        self._told: Sequence[Target] | None = None
        """What is to be looked at when the looking that goes on has ended."""
        self._looking: Iterator[None] = iter(())
        self._next_turn: asyncio.Handle | None = None
        self._seeing_off: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Replicas here by discovery, those on the way out included."""
        return len(self._members)

    def apply(self, targets: Sequence[Target]) -> None:
        """These are all there are. Where many are new, most are let in in later turns of the event
        loop; what is applied meanwhile comes after that, and only the latest of it."""
        self._told = targets
        if self._next_turn is None:
            self._go_on()

    def _go_on(self) -> None:
        """One turn's work."""
        self._next_turn = None
        while True:
            for _ in self._looking:
                self._next_turn = asyncio.get_running_loop().call_soon(self._go_on)
                return
            if self._told is None:
                return
            self._looking, self._told = self._look_at(self._told), None

    def _look_at(self, targets: Sequence[Target]) -> Iterator[None]:
        """Bring the fleet in step with these. Yields where a turn should end."""
        seen: set[str] = set()
        added = 0
        for count, target in enumerate(targets, 1):
            if count % LOOKED_AT_A_TURN == 0:
                yield
            try:
                name = _name(target.url)
            except ValueError as error:
                self._note(str(error))
                continue
            seen.add(name)
            member = self._members.get(name)
            if member is not None and member.identity != target.identity:
                log.info("replica %s: its address now belongs to another replica", name)
                self._remove(name)
                member = None
            if member is not None:
                self._update(member, target)
            elif target.ready and not target.leaving:
                if added and added % ADDED_A_TURN == 0:
                    yield
                added += 1
                self._add(name, target)
        for name, member in self._members.items():
            if name not in seen:
                self._leave(member)
        self._see_off()
        self._settled()

    def close(self) -> None:
        """Change nothing any more."""
        if self._next_turn is not None:
            self._next_turn.cancel()
        if self._seeing_off is not None:
            self._seeing_off.cancel()
            self._seeing_off = None

    def _add(self, name: str, target: Target) -> None:
        try:
            replica = self._fleet.add(target.url, target.models, target.role)
        except ValueError:
            if name not in self._refused:
                self._refused.add(name)
                log.info(
                    "replica %s: found by discovery, but it is listed or registered; it stays",
                    name,
                )
            return
        replica.by_discovery = True
        log.info("replica %s: found by discovery", name)
        self._members[name] = _Member(replica, target.identity)

    def _update(self, member: _Member, target: Target) -> None:
        if target.models:
            self._fleet.set_models(member.replica, target.models)
        if target.role != member.replica.role:
            self._fleet.set_role(member.replica, target.role)
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
