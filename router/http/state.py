"""How far a request is."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """How far an exchange is. docs/architecture.md tells what may follow what."""

    CHOOSING = "choosing"
    """No replica yet, or none any more."""
    WAITING = "waiting"
    """For a new connection, for a fresh look at the engines' models, or for a tokenizer."""
    QUEUED = "queued"
    """It waits in the queue: at the door, or in a replica's lane."""
    SENT = "sent"
    """A replica has the request; the client has got nothing of its answer."""
    OPENING = "opening"
    """A stream has begun of which the client has got no event, at most the head and comments."""
    RELAYING = "relaying"
    """The client gets an answer which no other replica can go on with."""
    TUNNEL = "tunnel"
    """The protocol was switched: bytes pass both ways unread."""
    OVER = "over"
    """Told, counted and logged."""


# By these names on a request's way: to look a member up on its enum takes as long as a call.
CHOOSING, WAITING, QUEUED, SENT, OPENING, RELAYING, TUNNEL, OVER = State
