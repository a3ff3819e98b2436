"""Reading one answer: a stream of server-sent events, or one JSON document."""

from __future__ import annotations

from array import array
from typing import Any

import msgspec

from loadgen.results.records import NO_TIME, UNKNOWN


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


class Answer:
    """What has come of one answer so far. Times are the caller's clock in seconds."""

    __slots__ = (
        "_keep_text",
        "_rest",
        "cached_tokens",
        "chunks",
        "finished",
        "first",
        "gaps",
        "last",
        "output_tokens",
        "prompt_tokens",
        "reason",
        "texts",
    )

    def __init__(self, *, keep_text: bool) -> None:
        self._keep_text = keep_text
        self._rest = b""
        self.texts: list[str] = []
        self.first = self.last = NO_TIME
        self.chunks = 0
        self.gaps = array("f")
        self.finished = False
        """The answer said that it is whole."""
        self.reason = ""
        self.prompt_tokens = self.cached_tokens = self.output_tokens = UNKNOWN

    def feed_stream(self, data: bytes, now: float) -> None:
        """Part of an event stream, cut anywhere."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if data.endswith(b"\n\n") and data.count(b"\n\n") == 1 and data.startswith(b"data: "):
            self._event(data[6:-2], now)
            return
        # Some servers end lines with CR LF. A CR alone at the cut waits for its LF in the rest.
        events = data.replace(b"\r\n", b"\n").split(b"\n\n")
        self._rest = events.pop()
        for event in events:
            lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                self._event(b"\n".join(lines).strip(), now)

    def _event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self.finished = True
            return
        try:
            chunk = _decode(data)
        except msgspec.MsgspecError:
            self.reason = self.reason or "unreadable event"
            return
        if chunk.error is not None:
            self.reason = self.reason or "error in stream"
        if chunk.choices:
            # As vLLM's benchmark does: whatever carries a choice is a token, even if its text is
            # empty.
            if self.chunks:
                self.gaps.append(now - self.last)
            else:
                self.first = now
            self.last = now
            self.chunks += 1
            choice = chunk.choices[0]
            if choice.finish_reason is not None:
                self.finished = True
            if self._keep_text:
                self._keep(choice.delta.content if choice.delta else choice.text)
        if chunk.usage is not None:
            self._usage(chunk.usage)

    def feed_document(self, data: bytes, now: float) -> None:
        """A whole answer that was not streamed."""
        self.first = self.last = now
        try:
            whole = _decode(data)
        except msgspec.MsgspecError:
            self.reason = "unreadable answer"
            return
        if whole.error is not None or not whole.choices:
            self.reason = "error in answer" if whole.error is not None else "no choices"
            return
        self.chunks = 1
        self.finished = True
        choice = whole.choices[0]
        if self._keep_text:
            self._keep(choice.message.content if choice.message else choice.text)
        if whole.usage is not None:
            self._usage(whole.usage)

    def _keep(self, content: str | None) -> None:
        if content:
            self.texts.append(content)

    def _usage(self, usage: Usage) -> None:
        if usage.prompt_tokens is not None:
            self.prompt_tokens = usage.prompt_tokens
        if usage.completion_tokens is not None:
            self.output_tokens = usage.completion_tokens
        details = usage.prompt_tokens_details
        if details is not None and details.cached_tokens is not None:
            self.cached_tokens = details.cached_tokens

    def end(self) -> None:
        """The answer's last byte has come (or will not come): settle whether it was good."""
        if self.reason:
            return
        if not self.chunks:
            self.reason = "no tokens"
        elif not self.finished:
            self.reason = "cut off"
        elif self.output_tokens == UNKNOWN:
            self.output_tokens = self.chunks
