"""Anthropic's messages."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import msgspec

from loadgen.client.formats.piece import Asked, Piece, ToolPiece
from loadgen.client.formats.reading import Reading, document_of, event_of
from loadgen.workloads.content import Role


class Usage(msgspec.Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class Delta(msgspec.Struct, gc=False):
    text: str | None = None


class Block(msgspec.Struct, gc=False):
    text: str | None = None


class Whole(msgspec.Struct, gc=False):
    content: list[Block] = []
    usage: Usage | None = None
    error: Any = None


class Event(msgspec.Struct, gc=False):
    type: str = ""
    delta: Delta | None = None
    message: Whole | None = None
    usage: Usage | None = None


_event = msgspec.json.Decoder(Event).decode
_whole = msgspec.json.Decoder(Whole).decode


class Messages:
    """System prompts are a field of their own; tool results are the user's."""

    path = "/v1/messages"
    limit = b',"max_tokens":%d'
    streaming = b',"stream":true'
    vllm_fields = b""
    temperature = b',"temperature":0'

    def prompt(self, asked: Asked) -> bytes:
        """System, messages and tools."""
        system = [piece.text for piece in asked.pieces if piece.role is Role.SYSTEM]
        turns = [piece for piece in asked.pieces if piece.role is not Role.SYSTEM]
        made = b'"messages":['
        # Neighbours of one side are one message: the API wants turns.
        made += b",".join(
            b'{"role":"%b","content":[%b]}'
            % (side, b",".join(block for piece in group for block in _blocks(piece)))
            for side, group in groupby(turns, _side)
        )
        made += b"]"
        if system:
            made += b',"system":"%b"' % b"\\n\\n".join(system)
        if asked.tools:
            made += b',"tools":[' + b",".join(map(_tool, asked.tools)) + b"]"
        return made

    def event(self, answer: Reading, data: bytes, now: float) -> None:
        """One event of a stream."""
        event = event_of(answer, _event, data)
        if event is None:
            return
        kind = event.type
        if kind == "content_block_delta":
            answer.token(now, event.delta.text if event.delta else None)
        elif kind == "message_start" and event.message is not None:
            _use(answer, event.message.usage)
        elif kind == "message_delta":
            _use(answer, event.usage)
        elif kind == "message_stop":
            answer.finished = True
        elif kind == "error":
            answer.fail("error in stream")

    def document(self, answer: Reading, data: bytes, now: float) -> None:
        """A whole answer."""
        whole = document_of(answer, _whole, data, "content")
        if whole is None:
            return
        answer.token(now, "".join(block.text or "" for block in whole.content))
        answer.finished = True
        _use(answer, whole.usage)


def _use(answer: Reading, usage: Usage | None) -> None:
    """input_tokens are those that no cache had; all three together are the prompt."""
    if usage is None:
        return
    cached = usage.cache_read_input_tokens
    prompt = usage.input_tokens
    if prompt is not None:
        prompt += (cached or 0) + (usage.cache_creation_input_tokens or 0)
    answer.used(prompt or None, usage.output_tokens, cached)


def _side(piece: Piece) -> bytes:
    return b"assistant" if piece.role is Role.ASSISTANT else b"user"


def _blocks(piece: Piece) -> list[bytes]:
    if piece.role is Role.TOOL:
        block = b'{"type":"tool_result","tool_use_id":"%b","content":"%b"}'
        return [block % (piece.call_id, piece.text)]
    blocks = []
    if piece.text or not (piece.images or piece.calls):
        blocks.append(b'{"type":"text","text":"%b"}' % (piece.text or b"."))
    blocks += [_image(url) for url in piece.images]
    blocks += [
        b'{"type":"tool_use","id":"%b","name":"%b","input":%b}'
        % (call.id, call.name, _input(call.arguments))
        for call in piece.calls
    ]
    return blocks


def _image(url: bytes) -> bytes:
    """A data URL as base64, another as it is."""
    if url.startswith(b"data:"):
        kind, _, data = url[len(b"data:") :].partition(b";base64,")
        source = b'{"type":"base64","media_type":"%b","data":"%b"}' % (kind, data)
    else:
        source = b'{"type":"url","url":"%b"}' % url
    return b'{"type":"image","source":%b}' % source


def _input(arguments: bytes) -> bytes:
    """A call's arguments as an object; what is none is put into one."""
    text = json.loads(b'"' + arguments + b'"')
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = {"arguments": text}
    return msgspec.json.encode(value if isinstance(value, dict) else {"arguments": value})


def _tool(piece: ToolPiece) -> bytes:
    return b'{"name":"%b","description":"%b","input_schema":%b}' % piece
