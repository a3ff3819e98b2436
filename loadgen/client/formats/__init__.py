"""How every API words a prompt and its answer: one file each."""

from __future__ import annotations

from typing import Protocol

from loadgen.client.formats.chat import Chat
from loadgen.client.formats.completions import Completions
from loadgen.client.formats.embeddings import Embeddings
from loadgen.client.formats.messages import Messages
from loadgen.client.formats.piece import Asked, Call, Piece, ToolPiece
from loadgen.client.formats.reading import Reading
from loadgen.client.formats.responses import Responses

__all__ = [
    "BY_PATH",
    "FORMATS",
    "ApiFormat",
    "Asked",
    "Call",
    "Piece",
    "ToolPiece",
]


class ApiFormat(Protocol):
    """One API. What is given as bytes is part of a JSON object, with a comma in front."""

    path: str
    limit: bytes
    """Of the answer's length, with %d; empty where there is none."""
    streaming: bytes
    """Empty where nothing streams."""
    vllm_fields: bytes
    """What only vLLM knows: a model that stops early makes the arms do other work."""
    temperature: bytes

    def prompt(self, asked: Asked) -> bytes:
        """The fields that carry it, without a comma in front."""
        ...

    def event(self, answer: Reading, data: bytes, now: float) -> None:
        """Read one event of a stream."""
        ...

    def document(self, answer: Reading, data: bytes, now: float) -> None:
        """Read an answer that was not streamed."""
        ...


FORMATS: dict[str, ApiFormat] = {
    "chat": Chat(),
    "completions": Completions(),
    "responses": Responses(),
    "messages": Messages(),
    "embeddings": Embeddings(),
}
BY_PATH: dict[str, ApiFormat] = {each.path: each for each in FORMATS.values()}
