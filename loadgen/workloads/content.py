"""What a request says, where the workload knows it: recorded messages, or a recorded body.

A step without content is made up: the client writes text for its segments. A step with content is
sent as it was recorded, and its segments only say how long it is and what it shares with others.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

import msgspec


class Role(IntEnum):
    """Where a segment stands in a chat request."""

    TOOLS = 0
    """One tool's schema. These come before all messages, as chat templates render them."""
    SYSTEM = 1
    USER = 2
    ASSISTANT = 3
    TOOL = 4
    """A tool's result."""


class ToolCall(msgspec.Struct, frozen=True, gc=False):
    """A call that the model asked for."""

    id: str
    name: str
    arguments: str
    """JSON."""


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: bytes = b'{"type":"object"}'
    """JSON Schema."""


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation, as every API can carry it."""

    role: Role
    text: str = ""
    images: tuple[str, ...] = ()
    """URLs, data URLs included."""
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    """Of the call whose result this is, for Role.TOOL."""
    answer: int = 0
    """The id of the earlier step's output that stands here, where the recording does not have its
    text: what was really answered is sent in its place. 0: the text is known."""


class Conversation(msgspec.Struct, frozen=True):
    """A whole prompt: every message so far."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


class Verbatim(msgspec.Struct, frozen=True):
    """A recorded request body, sent with the model and the streaming of the run and otherwise as
    it is."""

    path: str
    """Of its API, such as /v1/chat/completions."""
    body: bytes
    """JSON object."""


Content: TypeAlias = Conversation | Verbatim
