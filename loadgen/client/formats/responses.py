"""OpenAI's responses."""

from __future__ import annotations

from typing import Any

import msgspec

from loadgen.client.formats.piece import Asked, Piece, ToolPiece
from loadgen.client.formats.reading import Reading, document_of, event_of
from loadgen.workloads.content import Role


class Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: Details | None = None


class Part(msgspec.Struct, gc=False):
    text: str | None = None


class Item(msgspec.Struct, gc=False):
    content: list[Part] | None = None


class Whole(msgspec.Struct, gc=False):
    output: list[Item] = []
    usage: Usage | None = None
    error: Any = None


class Event(msgspec.Struct, gc=False):
    type: str = ""
    delta: Any = None
    response: Whole | None = None
    error: Any = None


_event = msgspec.json.Decoder(Event).decode
_whole = msgspec.json.Decoder(Whole).decode
_ENDS = ("response.completed", "response.incomplete")


class Responses:
    """Input items; the whole history is sent each time, nothing is stored at the server."""

    path = "/v1/responses"
    limit = b',"max_output_tokens":%d'
    streaming = b',"stream":true'
    vllm_fields = b""
    temperature = b',"temperature":0'

    def prompt(self, asked: Asked) -> bytes:
        """Items and tools."""
        items = [item for piece in asked.pieces for item in _items(piece)]
        made = b'"store":false,"input":[' + b",".join(items) + b"]"
        if asked.tools:
            made += b',"tools":[' + b",".join(map(_tool, asked.tools)) + b"]"
        return made

    def event(self, answer: Reading, data: bytes, now: float) -> None:
        """One event of a stream."""
        if data == b"[DONE]":
            return
        event = event_of(answer, _event, data)
        if event is None:
            return
        kind = event.type
        if kind.endswith(".delta"):
            text = event.delta if kind == "response.output_text.delta" else None
            answer.token(now, text if isinstance(text, str) else None)
        elif kind in _ENDS:
            answer.finished = True
            if event.response is not None and event.response.usage is not None:
                _use(answer, event.response.usage)
        elif kind in ("response.failed", "error") or event.error is not None:
            answer.fail("error in stream")

    def document(self, answer: Reading, data: bytes, now: float) -> None:
        """A whole answer."""
        whole = document_of(answer, _whole, data, "output")
        if whole is None:
            return
        parts = [part.text or "" for item in whole.output for part in item.content or ()]
        answer.token(now, "".join(parts))
        answer.finished = True
        if whole.usage is not None:
            _use(answer, whole.usage)


def _use(answer: Reading, usage: Usage) -> None:
    details = usage.input_tokens_details
    answer.used(usage.input_tokens, usage.output_tokens, details.cached_tokens if details else None)


def _items(piece: Piece) -> list[bytes]:
    if piece.role is Role.TOOL:
        item = b'{"type":"function_call_output","call_id":"%b","output":"%b"}'
        return [item % (piece.call_id, piece.text)]
    items = []
    if piece.text or piece.images or not piece.calls:
        kind = b"output_text" if piece.role is Role.ASSISTANT else b"input_text"
        parts = [b'{"type":"%b","text":"%b"}' % (kind, piece.text)]
        parts += [b'{"type":"input_image","image_url":"%b"}' % url for url in piece.images]
        role = {Role.SYSTEM: b"system", Role.ASSISTANT: b"assistant"}.get(piece.role, b"user")
        items.append(
            b'{"type":"message","role":"%b","content":[%b]}' % (role, b",".join(parts))
        )  # fmt: skip
    items += [
        b'{"type":"function_call","call_id":"%b","name":"%b","arguments":"%b"}' % call
        for call in piece.calls
    ]
    return items


def _tool(piece: ToolPiece) -> bytes:
    return b'{"type":"function","name":"%b","description":"%b","parameters":%b}' % piece
