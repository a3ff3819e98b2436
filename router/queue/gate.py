"""What one replica was sent that shows no first token yet, and what waits for it."""

from __future__ import annotations

from router.queue.lane import Lane
from router.queue.ticket import Ticket

STALE_S = 10.0
"""Seconds after which an engine's word on its memory counts no more."""


class Gate:
    """The gate of one slot. Tokens are uncached prompt tokens.

    A slot becomes another replica's only after all that was sent there has ended.
    """

    __slots__ = (
        "lane",
        "others_sent",
        "others_sent_tokens",
        "others_since_read",
        "others_waiting",
        "read_at",
        "running",
        "running_tokens",
        "sent",
        "sent_tokens",
        "since_read",
        "slot",
        "tied",
        "usage",
    )

    def __init__(self, slot: int, lane: Lane) -> None:
        self.slot = slot
        self.lane = lane
        self.sent = 0
        """Requests of this router without a first token."""
        self.sent_tokens = 0.0
        self.running = 0
        """Requests of this router that have not ended."""
        self.running_tokens = 0.0
        self.usage = 0.0
        """Share of the KV memory in use, as the engine said."""
        self.read_at = float("-inf")
        """When it said so."""
        self.since_read = 0.0
        """Tokens sent since then."""
        self.others_sent = 0
        self.others_sent_tokens = 0.0
        self.others_since_read = 0.0
        self.others_waiting: dict[tuple[int, str], float] = {}
        """What waits for this replica at other routers: (priority, tenant) -> tokens."""
        self.tied = False
        """The next one that is sent asks for nobody's turn at other routers."""

    def read(self, usage: float, now: float) -> None:
        """The engine's metrics were read."""
        self.usage = usage
        self.read_at = now
        self.since_read = self.others_since_read = 0.0

    def forget_engine(self) -> None:
        """The slot may become another replica's, whose memory is not as full as this one's was."""
        self.read(0.0, float("-inf"))

    def depth(self, routers: int) -> float:
        """Tokens sent without a first token, by all routers. What the others send at this very
        moment is not known yet: as much as this one does."""
        own = self.sent_tokens
        known = own + self.others_sent_tokens
        alike = own * routers
        return known if known > alike else alike

    def kv_share(self, more: float, capacity: float, routers: int, now: float) -> float:
        """Share of the KV memory that will be in use with so many tokens more. Where the engine has
        not said for long, by what was sent there."""
        if now - self.read_at > STALE_S:
            return (self.running_tokens * routers + more) / capacity
        own = self.since_read
        since = max(own + self.others_since_read, own * routers)
        return self.usage + (since + more) / capacity

    def ahead(self, priority: int) -> tuple[int, float]:
        """(requests that wait, tokens to compute) before one of this priority that comes now."""
        queued = self.sent_tokens + self.others_sent_tokens
        if not self.lane.size:
            return 0, queued
        count, tokens = self.lane.ahead(priority)
        return count, queued + tokens

    def behind(self, priority: int) -> tuple[int, float, float]:
        """(requests, tokens to compute, tokens of their prompts) that wait here, at any router, and
        have a lower priority than this. Of the others' requests only the tokens are known."""
        count = 0
        tokens = prompts = 0.0
        if self.lane.size:
            count, tokens, prompts = self.lane.behind(priority)
        for (each, _), waiting in self.others_waiting.items():
            if each > priority:
                tokens += waiting
                prompts += waiting
        return count, tokens, prompts

    def end_tie(self) -> None:
        """Routers count turns apart, so two may wait for each other while their replica rests: no
        longer than until now. The next one goes whatever waits at other routers."""
        self.tied = self.sent + self.others_sent == 0

    def blocked_by_others(self, ticket: Ticket, mine: float, counters: dict[str, float]) -> bool:
        """Whether what waits at another router goes before this. mine: the counter of the ticket's
        tenant."""
        for (priority, tenant), tokens in self.others_waiting.items():
            if tokens > 0.0 and (
                priority < ticket.priority
                or (
                    priority == ticket.priority
                    and tenant != ticket.tenant
                    and counters.get(tenant, 0.0) < mine
                )
            ):
                return True
        return False
