"""Chat templates that have the order of well-known families, and an engine that renders them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from router.render.anthropic import as_chat
from router.render.conversation import conversation, tool_definitions
from router.render.errors import UnrenderedError
from router.render.template import compiled

_LIST = "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
_CALLS = (
    "{% for call in m.tool_calls %}[call]{{ call.function.name }} "
    "{{ call.function.arguments | tojson }}{% endfor %}"
)
_ANSWER = "{% if add_generation_prompt %}[assistant]{% endif %}"
_THOUGHT = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
_LAST_USER = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
)


def _turns(thought: str, *, system: str = "", tools: str = "") -> str:
    """The messages but a system message at the front. system: what an inline one does."""
    return (
        "{% for m in messages %}{% if m.role == 'system' %}{% if not loop.first %}"
        + (system or "[system]{{ m.content }}")
        + "{% endif %}{% elif m.role == 'assistant' %}[assistant]"
        + thought
        + "{{ m.content or '' }}{% if m.tool_calls %}"
        + _CALLS
        + "{% endif %}{% else %}"
        + tools
        + "[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
    )


_SINCE_USER = "{% if loop.index0 > ns.last %}" + _THOUGHT + "{% endif %}"
_FRONT = "{% if messages[0].role == 'system' %}[system]{{ messages[0].content }}{% endif %}"
_TOOLS = "{% if tools %}[tools]" + _LIST + "{% endif %}"
_REFUSE = "{{ raise_exception('System message must be at the beginning.') }}"

TEMPLATES = {
    # The system prompt, then the tools; reasoning until the next question; thinking off at the end.
    "qwen3": _LAST_USER
    + _FRONT
    + _TOOLS
    + _turns(_SINCE_USER)
    + _ANSWER
    + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}",
    # Tools first, and no system message but the first.
    "qwen3.5": _LAST_USER + _TOOLS + _FRONT + _turns(_SINCE_USER, system=_REFUSE) + _ANSWER,
    # No reasoning at all.
    "qwen2.5": _FRONT + _TOOLS + _turns("") + _ANSWER,
    # Tools first; reasoning is kept on demand.
    "glm": _LAST_USER
    + _TOOLS
    + _FRONT
    + _turns(
        "{% if loop.index0 > ns.last or (clear_thinking is defined and not clear_thinking) %}"
        + _THOUGHT
        + "{% endif %}"
    )
    + _ANSWER,
    # The effort stands at the very front; it knows the developer; reasoning until an answer.
    "gpt-oss": "[system]Reasoning: {{ reasoning_effort or 'medium' }}"
    "{% set ns = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'assistant' and not m.tool_calls %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% if messages[0].role in ('system', 'developer') %}[developer]{{ messages[0].content }}"
    "{% endif %}"
    + _TOOLS
    + "{% set messages = messages[1:] if messages[0].role in ('system', 'developer') else messages %}"
    + "{% set shift = 0 %}"
    + _turns("{% if loop.index0 > ns.last - 1 %}" + _THOUGHT + "{% endif %}")
    + _ANSWER,
    # Tools before the last question; reasoning always.
    "mistral": _LAST_USER
    + _FRONT
    + _turns(
        _THOUGHT,
        tools="{% if tools and loop.index0 == ns.last %}[tools]" + _LIST + "{% endif %}",
    )
    + _ANSWER,
    # All system messages at the front.
    "deepseek": "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n{% endif %}"
    "{% endfor %}" + _TOOLS + _turns("", system="{% set ignored = 1 %}") + _ANSWER,
    # No system prompt at all, and no tools.
    "gemma": "{% if messages[0].role == 'system' %}"
    + _REFUSE
    + "{% endif %}"
    + _turns("", system=_REFUSE)
    + _ANSWER,
}


def render(name: str, body: dict[str, Any]) -> str:
    """A chat body's prompt, as vLLM renders it. Raises UnrenderedError."""
    template = compiled(TEMPLATES[name], ())
    arguments: dict[str, Any] = {"add_generation_prompt": True}
    arguments |= body.get("chat_template_kwargs") or {}
    effort = body.get("reasoning_effort")
    if effort is not None:
        arguments.setdefault("enable_thinking", effort != "none")
        arguments["reasoning_effort"] = effort
    messages = conversation(body["messages"], parts=template.parts, developer=template.developer)
    return template.render(messages, tool_definitions(body.get("tools")), arguments)


def render_messages(name: str, body: dict[str, Any]) -> str:
    """A body of the messages API, likewise."""
    try:
        roles = ("system", "user", "system", "user")
        render(name, {"messages": [{"role": role, "content": "t"} for role in roles]})
        merges = False
    except UnrenderedError:
        merges = True
    thinking = body.pop("thinking", None)
    chat = as_chat(body, merge_system=merges)
    if thinking == {"type": "disabled"}:
        chat["reasoning_effort"] = "none"
    return render(name, chat)


class TemplateEngine:
    """An engine with one chat template and a token for each byte, over a real socket."""

    def __init__(self, template: str, *names: str, counts: bool = True) -> None:
        self.template = template
        self.names = names or ("m",)
        self.counts = counts
        self.asked: list[dict[str, Any]] = []
        """Bodies of /tokenize."""
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> TemplateEngine:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = head.lower().partition("content-length: ")[2].partition("\r\n")[0]
                body = await reader.readexactly(int(length or 0))
                status, answer = self._answer(head.split(" ", 2)[1], body)
                writer.write(
                    b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(answer), answer)
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/health":
            return 200, b""
        if path == "/v1/models":
            about = {"root": "/models/it", "parent": None, "owned_by": "vllm"}
            cards = [{"id": name, **about} for name in self.names]
            return 200, json.dumps({"object": "list", "data": cards}).encode()
        try:
            if path == "/tokenize":
                self.asked.append(json.loads(body))
                text = render(self.template, self.asked[-1])
                return 200, json.dumps({"tokens": list(text.encode())}).encode()
            if path == "/v1/messages/count_tokens" and self.counts:
                text = render_messages(self.template, json.loads(body))
                return 200, json.dumps({"input_tokens": len(text.encode())}).encode()
        except UnrenderedError:
            return 400, b'{"error":{"message":"the template refuses"}}'
        return 404, b""
