"""One session, and what sessions want of one replica."""

from __future__ import annotations

import msgspec

from router.queue.returns import BINS


class Tail(msgspec.Struct, frozen=True, gc=False):
    """The end of a prompt: what a later prompt must contain, in its place, to go on with it."""

    block: int
    """Hash of the last full block, which covers all before it."""
    length: int
    """Of what follows that block."""
    digest: int
    """Hash of what follows that block."""


class Books:
    """What sessions want of one replica."""

    __slots__ = ("active", "idle", "idle_wanted")

    def __init__(self) -> None:
        self.active = [0.0, 0.0]
        """By kind: tokens of those with a request that waits or runs."""
        self.idle = ([0.0] * BINS, [0.0] * BINS)
        """By kind and bin: tokens of those that pause."""
        self.idle_wanted = 0.0
        """The latter times their weights."""


class Session(msgspec.Struct, eq=False):
    """One session, from its first placement until it has been idle for too long."""

    key: str
    prefix: int
    own: float
    """Tokens of KV that are this session's alone."""
    counted: float
    """What the books have: no less than a session is expected to grow to."""
    seen: float
    """When something of it last happened."""
    active: int = 1
    """Its requests that wait or run."""
    kind: int = 0
    """1 once it has come back, or where most that begin like it do; else 0."""
    returned: bool = False
    """It has come back."""
    bin: int = -1
    """Of its pause; -1 while a request of it waits or runs."""
    pause: int = 0
    """Its pauses so far."""
    tail: Tail | None = None
    """Of its last prompt, where sessions are told apart by prompts."""
    books: Books | None = None
    """Of the replica that its last request went to; None before it was placed."""
