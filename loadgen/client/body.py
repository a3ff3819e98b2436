"""Steps as request bodies."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from loadgen.client.text import name, text
from loadgen.workloads.types import Prompt, Role, Step

CHAT = "chat"
COMPLETIONS = "completions"
PATHS = {CHAT: "/v1/chat/completions", COMPLETIONS: "/v1/completions"}

_ROLES = {Role.SYSTEM: b"system", Role.USER: b"user", Role.ASSISTANT: b"assistant"}


class BodyMaker:
    """Renders steps for one API and one model.

    The text of an answer already received stands in for the declared one if the caller has it."""

    def __init__(
        self,
        model: str,
        api: str = CHAT,
        *,
        bytes_per_token: float = 4.0,
        stream: bool = True,
        vllm_fields: bool = True,
    ) -> None:
        if api not in PATHS:
            raise ValueError(f"unknown API {api!r}: use {' or '.join(PATHS)}")
        self._chat = api == CHAT
        self._bytes_per_token = bytes_per_token
        self._head = b'{"model":' + msgspec.json.encode(model) + b","
        self._tail = b',"temperature":0'
        if vllm_fields:
            # Without it a model may stop early, and the arms would not do the same work.
            self._tail += b',"ignore_eos":true'
        if stream:
            self._tail += b',"stream":true,"stream_options":{"include_usage":true}'
        self._tail += b"}"

    def body(self, step: Step, answers: Mapping[int, bytes]) -> bytes:
        """The JSON of one request. answers: segment id -> JSON string content (escaped, no
        quotes)."""
        if self._chat:
            prompt = self._messages(step.prompt, answers)
        else:
            pieces = [self._text(part.id, part.tokens, answers) for part in step.prompt]
            prompt = b'"prompt":"' + b" ".join(pieces) + b'"'
        limit = b',"max_tokens":%d' % step.output.tokens
        return self._head + prompt + limit + self._tail

    def sizes(self, step: Step, answers: Mapping[int, bytes]) -> list[float]:
        """Tokens that each segment of the prompt takes, by its bytes, with what surrounds it."""
        prompt = step.prompt
        found = []
        for place, part in enumerate(prompt):
            answer = answers.get(part.id)
            size = part.tokens * self._bytes_per_token if answer is None else len(answer)
            if self._chat:
                size += _AROUND[part.role]
                if part.role is Role.ASSISTANT and place + 1 < len(prompt):
                    size += _CALL_BYTES if prompt[place + 1].role is Role.TOOL else 0
            found.append(size / self._bytes_per_token)
        return found

    def _text(self, number: int, tokens: int, answers: Mapping[int, bytes]) -> bytes:
        answer = answers.get(number)
        if answer is not None:
            return answer
        return text(number, int(tokens * self._bytes_per_token))

    def _messages(self, prompt: Prompt, answers: Mapping[int, bytes]) -> bytes:
        """Messages and tools. Neighbours of one role are one message: chat templates want turns."""
        tools: list[bytes] = []
        messages: list[bytes] = []
        contents: list[bytes] = []
        count = len(prompt)
        for place, part in enumerate(prompt):
            content = self._text(part.id, part.tokens, answers)
            if part.role is Role.TOOLS:
                tools.append(_tool(part.id, content))
                continue
            if part.role is Role.TOOL:
                call = name(prompt[place - 1].id)
                messages.append(
                    b'{"role":"tool","tool_call_id":"call_%b","content":"%b"}' % (call, content)
                )
                continue
            contents.append(content)
            follower = prompt[place + 1].role if place + 1 < count else None
            if follower is part.role:
                continue
            joined = b"\\n\\n".join(contents)
            contents.clear()
            called = _call(part.id) if follower is Role.TOOL else b""
            messages.append(b'{"role":"%b","content":"%b"%b}' % (_ROLES[part.role], joined, called))
        made = b'"messages":[' + b",".join(messages) + b"]"
        if tools:
            made += b',"tools":[' + b",".join(tools) + b"]"
        return made


def _tool(number: int, content: bytes) -> bytes:
    return (
        b'{"type":"function","function":{"name":"tool_%b","description":"%b","parameters":'
        b'{"type":"object","properties":{"input":{"type":"string"}}}}}' % (name(number), content)
    )


def _call(number: int) -> bytes:
    made = name(number)
    return (
        b',"tool_calls":[{"id":"call_%b","type":"function","function":'
        b'{"name":"tool_%b","arguments":"{}"}}]' % (made, made)
    )


_MESSAGE_BYTES = 16
"""What chat templates put around a message: about four tokens."""
_CALL_BYTES = len(_call(0))
_AROUND = {
    Role.TOOLS: len(_tool(0, b"")),
    Role.SYSTEM: _MESSAGE_BYTES,
    Role.USER: _MESSAGE_BYTES,
    Role.ASSISTANT: _MESSAGE_BYTES,
    Role.TOOL: _MESSAGE_BYTES + len("call_") + len(name(0)),
}
