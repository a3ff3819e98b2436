"""Bodies of the four generating APIs -> what to run: tokens, lengths, and how to answer."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from loadgen.replicas.errors import ApiError, invalid, missing
from loadgen.replicas.tokens import END, START, ids_tokens, image_tokens, text_tokens


class ToolCall(msgspec.Struct, gc=False, frozen=True):
    """A call the answer must consist of."""

    name: str
    arguments: str
    """The arguments as JSON text."""
    named: bool
    """The client named this very function; otherwise it asked for any."""


class Job(msgspec.Struct):
    """What a request body asks for, in the engine's terms."""

    model: str
    prompts: list[bytes]
    """Token strings; more than one only for /v1/completions with a list."""
    n: int
    max_tokens: int | None
    min_tokens: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    salt: str
    tool: ToolCall | None
    body: dict[str, Any]


MOST_ANSWERS: Final = 16_384
"""Answers to one prompt, as vLLM has it without ``VLLM_MAX_N_SEQUENCES``."""


def _number(body: dict[str, Any], *names: str, least: int = 0) -> int | None:
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise invalid(name, f"{name} must be an integer, got {value!r}.")
        if value < least:
            raise invalid(name, f"{name} must be at least {least}, got {value}.")
        return value
    return None


def _job(body: dict[str, Any], prompts: list[bytes], *limits: str) -> Job:
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise invalid("model", "model must be a string.")
    salt = body.get("cache_salt")
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise invalid(
            "cache_salt",
            "Parameter 'cache_salt' must be a non-empty string if provided.",
        )
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise invalid("stream_options", "stream_options must be an object.")
    stream = bool(body.get("stream"))
    if options and not stream:
        raise invalid("stream_options", "Stream options can only be defined when `stream=True`.")
    options = options or {}
    n = _number(body, "n", least=1) or 1
    if n > MOST_ANSWERS:
        raise invalid("n", f"n must be at most {MOST_ANSWERS}, got {n}.")
    return Job(
        model=model or "",
        prompts=prompts,
        n=n,
        max_tokens=_number(body, *limits, least=1),
        min_tokens=_number(body, "min_tokens") or 0,
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        salt=salt or "",
        tool=None,
        body=body,
    )


def completions_job(body: dict[str, Any]) -> Job:
    """/v1/completions: text, token ids, or a list of either."""
    prompt = body.get("prompt")
    if prompt is None or prompt == "" or prompt == []:
        raise invalid("prompt", "Either prompt or prompt_embeds must be provided and non-empty.")
    several = isinstance(prompt, list) and not all(type(item) is int for item in prompt)
    prompts = [_plain_prompt(item) for item in (prompt if several else [prompt])]
    return _job(body, prompts, "max_tokens")


def _plain_prompt(prompt: Any) -> bytes:
    if isinstance(prompt, str):
        return text_tokens(prompt)
    if isinstance(prompt, list):
        try:
            return ids_tokens(prompt)
        except (TypeError, OverflowError):
            pass
    raise invalid("prompt", "prompt must be a string, a list of token ids, or a list of either.")


def chat_job(body: dict[str, Any]) -> Job:
    """The job of a body of /v1/chat/completions."""
    if "messages" not in body:
        raise missing("messages")
    tools = body.get("tools")
    choice = body.get("tool_choice")
    job = _job(
        body,
        [render(_list(body, "messages"), tools if choice != "none" else None)],
        "max_completion_tokens",
        "max_tokens",
    )
    if choice == "required" and tools:
        job.tool = _call(tools[0].get("function"), named=False)
    elif isinstance(choice, dict):
        wanted = (choice.get("function") or {}).get("name")
        job.tool = _find_call([tool.get("function") for tool in tools or []], wanted)
    return job


def messages_job(body: dict[str, Any]) -> Job:
    """The job of a body of /v1/messages (Anthropic)."""
    for field in ("messages", "max_tokens"):
        if field not in body:
            raise missing(field)
    messages = _list(body, "messages")
    system = body.get("system")
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    tools = body.get("tools")
    job = _job(body, [render(messages, tools)], "max_tokens")
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "any" and tools:
        job.tool = _call(tools[0], named=False, schema="input_schema")
    elif kind == "tool" and isinstance(choice, dict):
        job.tool = _find_call(tools or [], choice.get("name"), "input_schema")
    return job


def responses_job(body: dict[str, Any]) -> Job:
    """The job of a body of /v1/responses."""
    given = body.get("input")
    if given is None:
        raise missing("input")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(messages, list):
        raise invalid("input", "input must be a string or a list.")
    if body.get("instructions"):
        messages = [{"role": "system", "content": body["instructions"]}, *messages]
    tools = body.get("tools")
    job = _job(body, [render(messages, tools)], "max_output_tokens")
    choice = body.get("tool_choice")
    functions = [tool for tool in tools or [] if tool.get("type") == "function"]
    if choice == "required" and functions:
        job.tool = _call(functions[0], named=False)
    elif isinstance(choice, dict):
        job.tool = _find_call(functions, choice.get("name"))
    return job


def tokenize_prompt(body: dict[str, Any]) -> bytes:
    """The tokens a /tokenize body asks for: a prompt, or messages as chat would render them."""
    if "messages" in body:
        return render(_list(body, "messages"), body.get("tools"))
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise missing("prompt")
    return text_tokens(prompt)


def render(messages: list[Any], tools: Any = None, generation_prompt: bool = True) -> bytes:
    """The chat template: tools, then each message between START and END, then the opened answer."""
    pieces: list[bytes] = []
    if tools:
        pieces += (START, text_tokens("tools"), text_tokens(_json(tools)), END)
    for message in messages:
        if not isinstance(message, dict):
            raise invalid("messages", "each message must be an object.")
        role = message.get("role") or message.get("type") or "user"
        pieces += (START, text_tokens("system" if role == "developer" else str(role)))
        content = message.get("content")
        if isinstance(content, str):
            pieces.append(text_tokens(content))
        elif isinstance(content, list):
            pieces += [_part(part) for part in content]
        for name in ("tool_calls", "tool_call_id", "name", "arguments", "output"):
            if message.get(name):
                pieces.append(text_tokens(_json(message[name])))
        pieces.append(END)
    if generation_prompt:
        pieces += (START, text_tokens("assistant"))
    return b"".join(pieces)


def _part(part: Any) -> bytes:
    if isinstance(part, str):
        return text_tokens(part)
    if isinstance(part, dict):
        if isinstance(part.get("text"), str):
            return text_tokens(part["text"])
        for name in ("image_url", "input_audio", "video_url", "source"):
            if name in part:
                return image_tokens(_json(part[name]))
    return text_tokens(_json(part))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _list(body: dict[str, Any], field: str) -> list[Any]:
    value = body[field]
    if not isinstance(value, list) or not value:
        raise invalid(field, f"{field} must be a list with at least one item.")
    return value


def _find_call(functions: list[Any], wanted: str | None, schema: str = "parameters") -> ToolCall:
    for function in functions:
        if function and function.get("name") == wanted:
            return _call(function, named=True, schema=schema)
    raise ApiError(
        400,
        "The tool specified in `tool_choice` does not match any of the specified `tools`: "
        f"{wanted!r}",
        "tool_choice",
    )


def _call(function: Any, *, named: bool, schema: str = "parameters") -> ToolCall:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid("tools", "each tool must be an object with a named function.")
    return ToolCall(function["name"], _json(_example(function.get(schema) or {})), named)


def _example(schema: Any) -> Any:
    """The plainest value that fits a JSON schema's types."""
    if not isinstance(schema, dict):
        return None
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: _example(properties.get(name)) for name in schema.get("required") or ()}
    return {"string": "warm", "integer": 1, "number": 1.0, "boolean": True, "array": []}.get(kind)
