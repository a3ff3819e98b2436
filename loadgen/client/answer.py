"""Reading one answer: a stream of server-sent events, or one JSON document."""

from __future__ import annotations

from array import array

from loadgen.client.formats import FORMATS, ApiFormat
from loadgen.results.records import NO_TIME, UNKNOWN


class Answer:
    """What has come of one answer so far. Times are the caller's clock in seconds."""

    __slots__ = (
        "_format",
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

    def __init__(self, *, keep_text: bool, api: ApiFormat = FORMATS["chat"]) -> None:
        self._keep_text = keep_text
        self._format = api
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
            self._format.event(self, data[6:-2], now)
            return
        # Some servers end lines with CR LF. A CR alone at the cut waits for its LF in the rest.
        events = data.replace(b"\r\n", b"\n").split(b"\n\n")
        self._rest = events.pop()
        for event in events:
            lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                self._format.event(self, b"\n".join(lines).strip(), now)

    def feed_document(self, data: bytes, now: float) -> None:
        """A whole answer that was not streamed."""
        self._format.document(self, data, now)
        self.first = self.last = now

    def token(self, now: float, text: str | None) -> None:
        """A piece of the answer came, its text perhaps empty."""
        if self.chunks:
            self.gaps.append(now - self.last)
        else:
            self.first = now
        self.last = now
        self.chunks += 1
        if text and self._keep_text:
            self.texts.append(text)

    def used(self, prompt: int | None, output: int | None, cached: int | None) -> None:
        """Tokens, as far as the server told."""
        if prompt is not None:
            self.prompt_tokens = prompt
        if output is not None:
            self.output_tokens = output
        if cached is not None:
            self.cached_tokens = cached

    def fail(self, reason: str) -> None:
        """Say why it is not good; the first reason stays."""
        self.reason = self.reason or reason

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
