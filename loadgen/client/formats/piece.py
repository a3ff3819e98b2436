"""A prompt in pieces that every API can word: texts are JSON string contents, escaped, without
quotes."""

from __future__ import annotations

from typing import NamedTuple

from loadgen.workloads.content import Role


class Call(NamedTuple):
    """A tool call of the model."""

    id: bytes
    name: bytes
    arguments: bytes


class Piece(NamedTuple):
    """One message."""

    role: Role
    text: bytes
    images: tuple[bytes, ...] = ()
    """URLs."""
    calls: tuple[Call, ...] = ()
    call_id: bytes = b""
    """Of the call whose result this is."""


class ToolPiece(NamedTuple):
    """A function the model may call."""

    name: bytes
    description: bytes
    parameters: bytes
    """A JSON object, as it is."""


class Asked(NamedTuple):
    """A whole prompt."""

    pieces: list[Piece]
    tools: list[ToolPiece]
