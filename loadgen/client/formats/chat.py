"""OpenAI's chat completions."""

from __future__ import annotations

from typing import Any

import msgspec

from loadgen.client.formats.piece import Asked, Call, Piece, ToolPiece
from loadgen.client.formats.reading import Reading, document_of, event_of
from loadgen.workloads.content import Role

_ROLES = {
    Role.SYSTEM: b"system",
    Role.USER: b"user",
    Role.ASSISTANT: b"assistant",
    Role.TOOL: b"tool",
}


class Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class Message(msgspec.Struct, gc=False):
    content: str | None = None


class Choice(msgspec.Struct, gc=False):
    delta: Message | None = None
    message: Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct, gc=False):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(Chunk).decode


class Chat:
    """Also reads what the completions API answers, which differs in one field."""

    path = "/v1/chat/completions"
    limit = b',"max_tokens":%d'
    streaming = b',"stream":true,"stream_options":{"include_usage":true}'
    vllm_fields = b',"ignore_eos":true'
    temperature = b',"temperature":0'

    def prompt(self, asked: Asked) -> bytes:
        """Messages and tools."""
        made = b'"messages":[' + b",".join(map(_message, asked.pieces)) + b"]"
        if asked.tools:
            made += b',"tools":[' + b",".join(map(tool, asked.tools)) + b"]"
        return made

    def event(self, answer: Reading, data: bytes, now: float) -> None:
        """One event of a stream."""
        if data == b"[DONE]":
            answer.finished = True
            return
        chunk = event_of(answer, _decode, data)
        if chunk is None:
            return
        if chunk.error is not None:
            answer.fail("error in stream")
        if chunk.choices:
            # As vLLM's benchmark does: whatever carries a choice is a token, even if its text is
            # empty.
            choice = chunk.choices[0]
            answer.token(now, choice.delta.content if choice.delta else choice.text)
            if choice.finish_reason is not None:
                answer.finished = True
        if chunk.usage is not None:
            _use(answer, chunk.usage)

    def document(self, answer: Reading, data: bytes, now: float) -> None:
        """A whole answer."""
        whole = document_of(answer, _decode, data, "choices")
        if whole is None:
            return
        choice = whole.choices[0]
        answer.token(now, choice.message.content if choice.message else choice.text)
        answer.finished = True
        if whole.usage is not None:
            _use(answer, whole.usage)


def _use(answer: Reading, usage: Usage) -> None:
    details = usage.prompt_tokens_details
    answer.used(
        usage.prompt_tokens, usage.completion_tokens, details.cached_tokens if details else None
    )


def _message(piece: Piece) -> bytes:
    role, text, images, calls, call_id = piece
    if role is Role.TOOL:
        return b'{"role":"tool","tool_call_id":"%b","content":"%b"}' % (call_id, text)
    content = b'"%b"' % text if not images else _parts(text, images)
    if not calls:
        return b'{"role":"%b","content":%b}' % (_ROLES[role], content)
    called = b",".join(map(_call, calls))
    return b'{"role":"%b","content":%b,"tool_calls":[%b]}' % (_ROLES[role], content, called)


def _parts(text: bytes, images: tuple[bytes, ...]) -> bytes:
    parts = [b'{"type":"text","text":"%b"}' % text] if text else []
    parts += [b'{"type":"image_url","image_url":{"url":"%b"}}' % url for url in images]
    return b"[" + b",".join(parts) + b"]"


def _call(call: Call) -> bytes:
    return (
        b'{"id":"%b","type":"function","function":{"name":"%b","arguments":"%b"}}'
        % (call.id, call.name, call.arguments)
    )  # fmt: skip


def tool(piece: ToolPiece) -> bytes:
    """A tool's schema."""
    return (
        b'{"type":"function","function":{"name":"%b","description":"%b","parameters":%b}}'
        % (piece.name, piece.description, piece.parameters)
    )  # fmt: skip
