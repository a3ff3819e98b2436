"""A /v1/messages body as the chat body vLLM makes of it (``vllm/entrypoints/anthropic``)."""

from __future__ import annotations

import json
from typing import Any

from router.render.errors import UnrenderedError

_BILLING = "x-anthropic-billing-header"
_CHANGES = ("tool_addition", "tool_removal")


def as_chat(body: dict[str, Any], *, merge_system: bool) -> dict[str, Any]:
    """The chat body. merge_system: the template wants all system text at the front.

    Raises UnrenderedError for media, and for what depends on settings of the engine.
    """
    messages: list[dict[str, Any]] = []
    told = body.get("messages")
    if not isinstance(told, list) or not all(isinstance(message, dict) for message in told):
        raise UnrenderedError("shape", "messages is no list of objects")
    system = _system_texts(body.get("system"))
    if merge_system:
        system += [
            text for message in told if message.get("role") == "system" and (text := _own(message))
        ]
    if system:
        messages.append({"role": "system", "content": "".join(system)})
    for message in told:
        _convert(message, messages, merge_system)
    chat: dict[str, Any] = {"messages": messages}
    for name in ("model", "cache_salt", "chat_template_kwargs"):
        if body.get(name) is not None:
            chat[name] = body[name]
    thinking = body.get("thinking")
    if isinstance(thinking, dict) and thinking.get("type") == "disabled":
        raise UnrenderedError("argument", "what thinking.type=disabled means is the engine's")
    output = body.get("output_config")
    if isinstance(output, dict) and output.get("effort") is not None:
        chat["reasoning_effort"] = output["effort"]
    tools = body.get("tools")
    if tools:
        chat["tools"] = [_tool(tool) for tool in tools]
    return chat


def _system_texts(system: Any) -> list[str]:
    if not system:
        return []
    if isinstance(system, str):
        return [system]
    return [
        block["text"]
        for block in _blocks(system)
        if block.get("type") == "text"
        and block.get("text")
        and not block["text"].startswith(_BILLING)
    ]


def _own(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return "" if content.startswith(_BILLING) else content
    return "".join(_system_texts(content))


def _blocks(content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise UnrenderedError("shape", "content is no list of blocks")
    return content


def _convert(message: dict[str, Any], messages: list[dict[str, Any]], merge_system: bool) -> None:
    role, content = message.get("role"), message.get("content")
    if role == "system":
        text = "" if merge_system else _own(message)
        if text:
            messages.append({"role": "system", "content": text})
        return
    made: dict[str, Any] = {"role": role}
    if isinstance(content, str):
        made["content"] = content
        messages.append(made)
        return
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for block in _blocks(content):
        kind = block.get("type")
        if kind == "text":
            if block.get("text"):
                texts.append(block["text"])
        elif kind == "thinking":
            if block.get("thinking") is not None:
                thoughts.append(block["thinking"])
        elif kind == "tool_use":
            if not block.get("id"):
                raise UnrenderedError("shape", "a tool_use block without id")
            calls.append(_call(block))
        elif kind == "tool_result":
            if role != "user":
                raise UnrenderedError("shape", "a tool_result outside a user message")
            messages.append(_result(block))
        elif kind in _CHANGES:
            raise UnrenderedError("argument", "tools change within the conversation")
        elif kind not in ("redacted_thinking", "tool_reference"):
            raise UnrenderedError("media", f"a block of type {kind!r}")
    if thoughts:
        made["reasoning"] = "".join(thoughts)
    if calls:
        made["tool_calls"] = calls
    if len(texts) == 1:
        made["content"] = texts[0]
    elif texts:
        made["content"] = [{"type": "text", "text": text} for text in texts]
    if role != "user" or "content" in made:
        messages.append(made)


def _call(block: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": block["id"],
        "type": "function",
        "function": {
            "name": block.get("name") or "",
            "arguments": json.dumps(block.get("input") or {}),
        },
    }


def _result(block: dict[str, Any]) -> dict[str, Any]:
    content = block.get("content")
    if isinstance(content, list):
        texts = []
        for item in _blocks(content):
            if item.get("type") != "text":
                raise UnrenderedError("media", f"a tool result of type {item.get('type')!r}")
            texts.append(item.get("text", ""))
        content = "\n".join(texts)
    return {
        "role": "tool",
        "tool_call_id": block.get("tool_use_id") or "",
        "content": content or "",
    }


def _tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict) or not isinstance(tool.get("input_schema"), dict):
        raise UnrenderedError("shape", "a tool without input_schema")
    schema = tool["input_schema"]
    if "type" not in schema:
        schema = {**schema, "type": "object"}
    return {
        "type": "function",
        "function": {
            "name": tool.get("name"),
            "description": tool.get("description"),
            "parameters": schema,
            "strict": tool.get("strict"),
            "defer_loading": tool.get("defer_loading"),
        },
    }
