"""What a workload is made of, so that the live client and the simulator share it.

A prompt is a sequence of segments. Two segments with the same id start with the same text; two with
different ids differ from their first token. That is all a prefix cache can see, so block hashes
follow from ids and lengths alone (``chain``), and the live client renders the same text for the
same id.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Protocol, TypeAlias

import msgspec

from loadgen.workloads.content import Content, Role

__all__ = [
    "Count",
    "Exponent",
    "Mean",
    "Prompt",
    "Role",
    "Seconds",
    "Segment",
    "Session",
    "Share",
    "Step",
    "Tokens",
    "Workload",
    "tokens",
]

# What a workload's numbers may be when they are set by hand (``make``).
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Tokens: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Mean: TypeAlias = Annotated[float, msgspec.Meta(ge=1, le=1e6)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
Exponent: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=100)]


class Segment(msgspec.Struct, frozen=True, gc=False):
    """A piece of a prompt, or an answer."""

    id: int
    """63 bits. The text is a function of it; a shorter segment's text is the start of a longer
    one's."""
    tokens: int
    role: Role = Role.USER


Prompt: TypeAlias = tuple[Segment, ...]


class Step(msgspec.Struct, frozen=True):
    """One request of a session."""

    prompt: Prompt
    output: Segment
    """The declared answer: its length is asked for, and later prompts contain this very segment.
    The live client puts the text it really got in its place unless told otherwise."""
    after: tuple[int, ...] = ()
    """Steps of the same session, by index, that must have ended; empty for a session's first
    step."""
    pause: float = 0.0
    """Seconds from the end of the last of them (or from the session's start) to this request."""
    thread: int = 0
    """Which of the session's agents asks: 0 for the main one, others for its sub-agents."""
    content: Content | None = None
    """What to send, where it was recorded; None: text made up for the segments."""
    adapter: str = ""
    """The LoRA adapter that is asked for instead of the model; empty: the model. Prompts for
    different adapters share no segment: their caches have nothing in common."""


class Session(msgspec.Struct, frozen=True):
    """Steps that belong together: a conversation, or an agent's task with its sub-agents.

    Steps are listed so that every step comes after those it waits for."""

    number: int
    steps: tuple[Step, ...]
    at: float = 0.0
    """Seconds from the start, for workloads that are timed; else arrivals decide."""


class Workload(Protocol):
    """An endless or finite stream of sessions, a function of the seed alone."""

    @property
    def name(self) -> str:
        """As written on the command line."""
        ...

    @property
    def timed(self) -> bool:
        """Sessions carry their own arrival times."""
        ...

    @property
    def group(self) -> int:
        """How many consecutive sessions arrive together."""
        ...

    def sessions(self, seed: int) -> Iterator[Session]:
        """Sessions in order of arrival; the same for the same seed."""
        ...


def tokens(prompt: Prompt) -> int:
    """The prompt's length in declared tokens."""
    return sum(segment.tokens for segment in prompt)
