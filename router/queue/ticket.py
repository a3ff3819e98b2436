"""One request's way through the queue.

    NEW -> PARKED (at the door) -> HELD (in its replica's lane) -> SENT -> ANSWERING -> OVER

Every state may be skipped but OVER, and every state may go straight to OVER.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final, Protocol, cast

import msgspec

from router.queue.session import Session, Tail
from router.types import Chain

if TYPE_CHECKING:
    from router.scheduling.placer import Placement

HIGH: Final = -1
NORMAL: Final = 0
LOW: Final = 1

NO_CLASS: Final = (NORMAL, "")


class State(IntEnum):
    """Where a request is. Only these books hold something of it:

    PARKED: the door's lane. HELD: its replica's lane. SENT: its gate's tokens, and its gate's
    running. ANSWERING: its gate's running. From its placement on, its session.
    """

    NEW = 0
    PARKED = 1
    HELD = 2
    SENT = 3
    """Sent to the replica, and no first token yet."""
    ANSWERING = 4
    OVER = 5


# By these names on a request's way: to look a member up on its enum takes as long as a call.
NEW, PARKED, HELD, SENT, ANSWERING, OVER = State


class Refusal(msgspec.Struct, frozen=True):
    """Why a request will not be sent."""

    why: str
    """late (the first token would come after the limit), full (too many wait), expired (waited too
    long), draining, or no_replica."""
    retry_after: float
    """Seconds after which to come again, spread so that not all come back at once."""
    waited: float = 0.0
    expected: float = 0.0
    """Seconds it would have waited from now on, where that was asked."""


class Owner(Protocol):
    """Who has the request. Calls come from within the queue's own calls."""

    def eligible(self) -> int:
        """Mask of the replicas that may take it now; 0 when there is none, and when its owner has
        failed on it and has told the queue that it is gone."""
        ...

    def uncached(self) -> float:
        """Prompt tokens that nobody holds."""
        ...

    def tail_digest(self, blocks: int, length: int) -> int:
        """Hash of so much of the prompt behind its first blocks; -1 where it is not that long."""
        ...

    def place(self, eligible: int, now: float) -> Placement | None:
        """Choose one of these replicas, and charge it. None where that failed, and the request has
        been answered."""
        ...

    def unplace(self, placement: Placement, now: float) -> None:
        """Take the charges back: it was placed and never sent."""
        ...

    def send(self, placement: Placement, now: float) -> None:
        """Send it now."""
        ...

    def refuse(self, refusal: Refusal, now: float) -> None:
        """It will not be sent: answer it."""
        ...


NOBODY: Final = cast(Owner, None)
"""Owns what is over: it is asked nothing any more, and kept alive by nothing that waits."""


class Ticket(msgspec.Struct, eq=False):
    """A request from its coming to its end. The first fields are the caller's, the queue writes the
    others. Times are monotonic seconds, tokens estimates."""

    owner: Owner
    at: float
    """When it came."""
    chain: Chain
    size: int
    """Weight of its prompt."""
    stream: bool = True
    tenant: str = ""
    priority: int = NORMAL
    weight: float = 1.0
    """Of its tenant: one with 2 gets twice the turns."""
    limit: float = 0.0
    """Seconds to the first token, beyond which it is rather refused; 0 none."""
    aim: float = 0.0
    """Seconds to the first token, beyond which it, or what is colder, leaves for elsewhere where it
    may; 0 none."""
    session: str = ""
    """What names its session; empty when the client did not say."""
    body: int = 0
    """Bytes that are kept while it waits."""
    tail: Tail | None = None
    """The end of its prompt; None where a key tells its session, or no prompt can."""

    state: State = State.NEW
    number: int = 0
    since: float = 0.0
    """From when on it has been waiting, for the longest that it may."""
    retried: bool = False
    """An attempt has failed: it goes before all others, and is not refused."""
    goes_on: bool = False
    """Its session is in progress."""
    back_in_time: bool = False
    """Its session had paused for no longer than its cache was worth keeping."""
    of: Session | None = None
    expected_own: float = 0.0
    """Tokens the door expects its session to want."""
    lane: object | None = None
    """Where it waits; None while it does not."""
    group: int = 0
    """Which of the door's lanes it is in: those of one group may go to the same replicas."""
    placement: Placement | None = None
    predicted: float = 0.0
    """Seconds to its first token as predicted when it was placed, before calibration."""
    placed_at: float = 0.0
    sent_at: float = 0.0
    was_parked: bool = False
    was_held: bool = False
    ahead: int = 0
    """Requests that it had to wait for when it began to wait."""
    expected_wait: float = 0.0
    """Seconds that it was expected to wait then."""
    wanted_share: float = 0.0
    """When it was parked: the share of KV memory that sessions in progress wanted, at the replica
    that came nearest to having room."""

    @property
    def lane_priority(self) -> int:
        """Its place in the order of a lane."""
        return HIGH - 1 if self.retried else self.priority
