"""Messages as the chat API and the messages API have them, into ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from loadgen.workloads.content import Message, Role, ToolCall
from loadgen.workloads.traces.segments import image_url

_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "human": Role.USER,
    "assistant": Role.ASSISTANT,
    "gpt": Role.ASSISTANT,
    "model": Role.ASSISTANT,
    "tool": Role.TOOL,
    "function": Role.TOOL,
}


def role_of(name: object) -> Role:
    """Of a role's name; one that nobody knows is the user's."""
    return _ROLES.get(str(name).lower(), Role.USER)


def value_of(written: Any) -> Any:
    """What database columns and attributes of spans hold: JSON as text, where it is no plain
    value."""
    if isinstance(written, str) and written[:1] in ("{", "["):
        try:
            return msgspec.json.decode(written)
        except msgspec.MsgspecError:
            return written
    return written


def text_of(content: Any) -> str:
    """The text of a message's content: a string, parts, or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(text_of(part) for part in content)
    if isinstance(content, dict):
        for field in ("text", "content", "output"):
            if field in content:
                return text_of(content[field])
    return ""


def images_of(content: Any) -> tuple[str, ...]:
    """URLs of the images in a message's content."""
    parts = content if isinstance(content, list) else []
    return tuple(url for part in parts if isinstance(part, dict) and (url := image_url(part)))


def chat_message(given: dict[str, Any]) -> Message:
    """One of the chat API."""
    calls = []
    for call in given.get("tool_calls") or ():
        function = call.get("function") or {}
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = msgspec.json.encode(arguments or {}).decode()
        calls.append(ToolCall(str(call.get("id", "")), str(function.get("name", "")), arguments))
    content = given.get("content")
    return Message(
        role_of(given.get("role")),
        text_of(content),
        images_of(content),
        tuple(calls),
        str(given.get("tool_call_id") or ""),
    )


def chat_messages(given: Iterable[dict[str, Any]]) -> tuple[Message, ...]:
    """A conversation of the chat API."""
    return tuple(chat_message(each) for each in given)


def anthropic_messages(role: Role, content: Any) -> list[Message]:
    """One message of the messages API; tool results in it are messages of their own."""
    if not isinstance(content, list):
        return [Message(role, text_of(content))]
    found: list[Message] = []
    texts: list[str] = []
    images: list[str] = []
    calls: list[ToolCall] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else "text"
        if kind == "tool_result":
            said = text_of(block.get("content"))
            found.append(
                Message(
                    Role.TOOL,
                    said,
                    images_of(block.get("content")),
                    call_id=str(block.get("tool_use_id", "")),
                )
            )
        elif kind == "tool_use":
            arguments = msgspec.json.encode(block.get("input") or {}).decode()
            calls.append(ToolCall(str(block.get("id", "")), str(block.get("name", "")), arguments))
        elif kind == "image":
            images += images_of([block])
        elif kind == "text":
            texts.append(text_of(block))
        # Thinking is not part of later prompts.
    if texts or images or calls or not found:
        found.append(Message(role, "".join(texts), tuple(images), tuple(calls)))
    return found
