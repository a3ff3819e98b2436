"""What a format tells of an answer that it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec


class Document(Protocol):
    """What all APIs' whole answers have."""

    error: Any


_Event = TypeVar("_Event")
_Document = TypeVar("_Document", bound=Document)


class Reading(Protocol):
    """An answer in the making."""

    finished: bool
    """The answer said that it is whole."""

    def token(self, now: float, text: str | None) -> None:
        """A piece of it came, its text perhaps empty."""
        ...

    def used(self, prompt: int | None, output: int | None, cached: int | None) -> None:
        """Tokens, as far as the server told."""
        ...

    def fail(self, reason: str) -> None:
        """It is not good."""
        ...


def event_of(answer: Reading, decode: Callable[[bytes], _Event], data: bytes) -> _Event | None:
    """One event of a stream. None, and the answer is told, where it cannot be read."""
    try:
        return decode(data)
    except msgspec.MsgspecError:
        answer.fail("unreadable event")
        return None


def document_of(
    answer: Reading, decode: Callable[[bytes], _Document], data: bytes, content: str
) -> _Document | None:
    """A whole answer. None, and the answer is told why, where it cannot be read, is an error, or
    its field `content` (a list) is empty."""
    try:
        whole = decode(data)
    except msgspec.MsgspecError:
        answer.fail("unreadable answer")
        return None
    if whole.error is not None:
        answer.fail("error in answer")
        return None
    if not getattr(whole, content):
        answer.fail(f"no {content}")
        return None
    return whole
