"""Chat messages as vLLM hands them to the template.

Follows ``_parse_chat_message_content`` and ``_postprocess_messages`` of
``vllm/renderers/chat_utils.py`` and, for developer messages, ``vllm/renderers/hf.py``.
"""

from __future__ import annotations

from typing import Any

from router.render.arguments import parse_arguments
from router.render.errors import UnrenderedError

Message = dict[str, Any]

_BILLING = "x-anthropic-billing-header"


def conversation(messages: list[Any], *, parts: bool, developer: bool) -> list[Message]:
    """The template's messages. parts: content goes in as a list; developer: the template knows that
    role. Raises UnrenderedError for media and for shapes an engine would refuse."""
    found = [_message(message, parts) for message in messages]
    if not developer and any(message["role"] == "developer" for message in found):
        found = _system_first(found)
    return found


def _message(message: Any, parts: bool) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UnrenderedError("shape", "a message has no role")
    role = message["role"]
    content = message.get("content")
    if type(content) is str and not parts and role != "system":
        made: Message = {"role": role, "content": content}
    else:
        made = {"role": role, "content": _content(role, content, parts)}
    if role == "assistant":
        calls = message.get("tool_calls")
        if calls:
            made["tool_calls"] = [_call(call) for call in calls]
        reasoning = message.get("reasoning")
        if reasoning is None:
            reasoning = message.get("reasoning_content")
        if reasoning is not None:
            made["reasoning"] = made["reasoning_content"] = reasoning
    elif role == "tool" and "tool_call_id" in message:
        made["tool_call_id"] = message["tool_call_id"]
    for name in ("name", "task"):
        if isinstance(message.get(name), str):
            made[name] = message[name]
    if role == "developer":
        made["tools"] = message.get("tools")
    return made


def _content(role: str, content: Any, parts: bool) -> str | list[dict[str, str]]:
    if content is None:
        texts = []
    elif isinstance(content, str):
        texts = [content]
    elif isinstance(content, list):
        texts = [text for part in content if (text := _text(part)) is not None]
    else:
        raise UnrenderedError("shape", "content is neither text nor a list")
    if role == "system":
        texts = [text for text in map(_without_billing, texts) if text is not None]
    if parts:
        if role != "tool":
            return [{"type": "text", "text": text} for text in texts]
        return "\n".join(texts)
    return "\n".join(text for text in texts if text)  # vLLM drops empty parts, here only


_TEXT_FIELDS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}


def _text(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise UnrenderedError("shape", "a content part is neither text nor an object")
    kind = part.get("type")
    field = _TEXT_FIELDS.get(kind) if isinstance(kind, str) else None
    if field is None:
        raise UnrenderedError("media", f"a content part of type {kind!r}")
    text = part.get(field)
    if text is None and kind in ("text", "refusal"):
        return None
    if not isinstance(text, str):
        raise UnrenderedError("shape", f"a content part of type {kind!r} without text")
    return text


def _without_billing(text: str) -> str | None:
    """A system text, less the line some agents change with each request, as vLLM drops it."""
    if not text.startswith(_BILLING):
        return text
    return text.partition("\n")[2] or None


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise UnrenderedError("shape", "a tool call without function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_arguments(arguments)
    if not isinstance(arguments, dict):
        arguments = {}
    made: dict[str, Any] = {}
    if "id" in call:
        made["id"] = call["id"]
    made["function"] = {"arguments": arguments, "name": function.get("name")}
    made["type"] = call.get("type", "function")
    return made


def _system_first(messages: list[Message]) -> list[Message]:
    """Turn developer messages into system messages, and merge all of them into one at the front."""
    for message in messages:
        if message["role"] == "developer":
            message["role"] = "system"
            message.pop("tools", None)
    system = [message for message in messages if message["role"] == "system"]
    if len(system) == 1 and messages[0] is system[0]:
        return messages
    texts = []
    for message in system:
        content = message["content"]
        if isinstance(content, list):
            content = "\n".join(part["text"] for part in content)
        if content:
            texts.append(content)
    others = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(texts)}, *others]


def tool_definitions(tools: Any) -> list[dict[str, Any]] | None:
    """The tools as vLLM's request model dumps them. Raises UnrenderedError."""
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise UnrenderedError("shape", "tools is no list")
    return [_tool(tool) for tool in tools]


def _tool(tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        raise UnrenderedError("shape", "a tool without function")
    deferred = tool.get("defer_loading")
    made: dict[str, Any] = {
        "name": function.get("name"),
        "description": function.get("description"),
        "parameters": function.get("parameters"),
    }
    if function.get("strict") is not None:
        made["strict"] = function["strict"]
    own = function.get("defer_loading")
    if own is None:
        own = deferred
    if own is not None:
        made["defer_loading"] = own
    found: dict[str, Any] = {"type": "function", "function": made}
    if deferred is not None:
        found["defer_loading"] = deferred
    return found
