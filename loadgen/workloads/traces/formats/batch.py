"""OpenAI's batch files."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from loadgen.workloads.content import Verbatim
from loadgen.workloads.traces.format import JSON, Format
from loadgen.workloads.traces.recorded import Length, Reading, Recorded, Recording
from loadgen.workloads.traces.source import Source

PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
)
"""APIs whose recorded bodies can be sent."""


class Line(msgspec.Struct):
    """One request."""

    url: str
    body: msgspec.Raw


class Limits(msgspec.Struct):
    """The answer's length, as the APIs name it."""

    max_tokens: Length | None = None
    max_completion_tokens: Length | None = None
    max_output_tokens: Length | None = None

    @property
    def most(self) -> int:
        """0 where none is asked for."""
        return self.max_tokens or self.max_completion_tokens or self.max_output_tokens or 0


def recorded_body(path: str, body: bytes) -> Recorded:
    """A request body, to be sent as it is."""
    return Recorded(
        content=Verbatim(path, body),
        output_tokens=msgspec.json.decode(body, type=Limits).most,
    )


def read(source: Source, _reading: Reading) -> Iterator[Recording]:
    """Each line goes to its own API."""
    for number, line in source.records(Line):
        if line.url not in PATHS:
            raise source.wrong(number, f"url {line.url!r}: can be {', '.join(PATHS)}")
        try:
            one = recorded_body(line.url, bytes(line.body))
        except msgspec.MsgspecError as error:
            raise source.wrong(number, f"body: {error}") from error
        yield (one,)


BATCH = Format(
    name="batch",
    title="OpenAI batch jsonl",
    kinds=JSON,
    needs=(("custom_id",), ("url",), ("body",)),
    read=read,
    check=lambda record: isinstance(record["body"], dict),
    check_said="body as an object",
)
