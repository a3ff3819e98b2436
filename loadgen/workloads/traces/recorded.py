"""What every reader of a trace yields."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, TypeAlias

import msgspec

from loadgen.workloads.content import Content

Length: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]
"""Tokens, as a record tells them."""
PromptLength: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]


class TraceError(ValueError):
    """A trace that cannot be read; names the file and the line."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """One request, as far as the trace tells."""

    at: float = 0.0
    """Seconds, from any zero, of formats with times."""
    pause: float = 0.0
    """Seconds after what it waits for."""
    waits: tuple[int, ...] | None = None
    """Requests of its session that end first, by index; None: the one before it."""
    thread: int = 0
    prompt_tokens: int = 0
    """0: counted from the content."""
    output_tokens: int = 0
    """0: counted from the answer, or not told."""
    blocks: tuple[int | str, ...] = ()
    """Names of the prompt's blocks: equal leading names are a shared prefix."""
    block_tokens: int = 0
    content: Content | None = None
    answer: str | None = None
    """What was answered then, as later prompts of the session have it."""
    answer_id: int = 0
    """What later prompts call the answer, where they have to take what is really answered."""
    session: str = ""
    """Requests of other recordings that belong to it have the same, where prompts continue each
    other and only their lengths are told."""


Recording: TypeAlias = tuple[Recorded, ...]
"""A session: the first one's time is the session's."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What readers are told besides the file."""

    columns: dict[str, str] = {}
    unit: str = "auto"
    """Of numeric times: s, ms, us, or auto."""
    block_tokens: int = 0
    """Tokens of a block; 0: found out."""


_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
# Seconds since 1970 have ten digits until 2286.
_DIGITS = ((1e17, "ns"), (1e14, "us"), (1e11, "ms"))


def seconds_of(value: str | float, unit: str = "auto") -> float:
    """Of a time as traces have it: a number, or a date as ISO 8601 has it. Raises ValueError."""
    if isinstance(value, str):
        text = value.strip()
        try:
            value = float(text)
        except ValueError:
            moment = datetime.fromisoformat(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if unit == "auto":
        unit = next((name for least, name in _DIGITS if value >= least), "s")
    if unit not in _UNITS:
        raise ValueError(f"unit {unit!r}: use {', '.join(_UNITS)} or auto")
    return value * _UNITS[unit]
