"""OpenAI's embeddings: a prompt and no answer, so that its time is the time to first token."""

from __future__ import annotations

from typing import Any

import msgspec

from loadgen.client.formats.completions import joined
from loadgen.client.formats.piece import Asked
from loadgen.client.formats.reading import Reading, document_of


class Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class Whole(msgspec.Struct, gc=False):
    data: list[msgspec.Raw] = []
    usage: Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(Whole).decode


class Embeddings:
    """Never streamed."""

    path = "/v1/embeddings"
    limit = b""
    streaming = b""
    vllm_fields = b""
    temperature = b""

    def prompt(self, asked: Asked) -> bytes:
        """The text to embed."""
        return b'"input":"' + joined(asked) + b'"'

    def event(self, answer: Reading, data: bytes, now: float) -> None:  # noqa: ARG002
        """There are none."""
        answer.fail("unreadable answer")

    def document(self, answer: Reading, data: bytes, now: float) -> None:
        """A whole answer."""
        whole = document_of(answer, _decode, data, "data")
        if whole is None:
            return
        answer.token(now, None)
        answer.finished = True
        if whole.usage is not None:
            details = whole.usage.prompt_tokens_details
            answer.used(whole.usage.prompt_tokens, 0, details.cached_tokens if details else None)
