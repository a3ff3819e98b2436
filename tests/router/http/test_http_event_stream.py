"""The usage event is found and taken out however the stream is cut into chunks and reads."""

from __future__ import annotations

import json
from typing import Any, cast

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from router.http.events import Scanner
from router.http.relay import EventStream
from router.http.routes import Form

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":5}}\n\n'
SPACED = b'data: {"id": 1, "usage": {"prompt_tokens": 9}, "choices": []}\n\n'
DONE = b"data: [DONE]\n\n"
LOOKALIKES = (
    b'data: {"choices":[{"delta":{"content":"\\"usage\\""}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":1}}\n\n',
    b'data: {"choices":[],"usage":null}\n\n',
    b'data: {"choices":[]}\n\n',
    b'data: {"usage":{"prompt_tokens":1}}\n\n',
    b'data: "usage"\n\n',
    b': "usage" a comment\n\n',
    b'event: x\ndata: {"choices":[],"usage":{}}\n\n',
)
TOKENS = st.text(max_size=20).map(
    lambda text: (
        b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"
    )
)
EVENTS = st.lists(st.one_of(TOKENS, st.sampled_from(LOOKALIKES)), max_size=8)
CUTS = st.lists(st.integers(1, 200), max_size=30)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [piece for piece in (*pieces, data) if piece]


def chunked(text: bytes, sizes: list[int], extension: bytes = b"") -> bytes:
    chunks = [b"%x%b\r\n%b\r\n" % (len(p), extension, p) for p in cut(text, sizes)]
    return b"".join(chunks) + b"0\r\n\r\n"


class Engine:
    def __init__(self, fingerprint: bytes | None = b"") -> None:
        self.fingerprint = fingerprint


def stream(engine: Engine | None = None, *, filters: bool = True) -> EventStream:
    return EventStream(Scanner(Form.OPENAI, b""), engine or Engine(), filters)


class Parsed:
    """What a client makes of it, and whether the parser is inside a chunk."""

    def __init__(self) -> None:
        self.body = b""
        self.in_chunk = False
        self.chunks = 0
        self.complete = False
        self.parser = httptools.HttpResponseParser(self)
        self.parser.feed_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_chunk_header(self) -> None:
        self.in_chunk = True
        self.chunks += 1

    def on_chunk_complete(self) -> None:
        self.in_chunk = False

    def on_message_complete(self) -> None:
        self.complete = True


def through(raw: bytes, reads: list[int]) -> tuple[Parsed, EventStream, list[bytes]]:
    before, after, found = Parsed(), Parsed(), stream()
    out = []
    for read in cut(raw, reads):
        before.parser.feed_data(read)
        passed = found.feed(read, cast(Any, before))
        out.append(passed)
        if passed:
            after.parser.feed_data(passed)
            # What the client has is whole chunks and whole events, so that an error can follow.
            if found.filters:
                assert not after.in_chunk
                assert after.body.endswith((b"\n\n", b"\r\n\r\n"))
    assert before.complete
    return after, found, out


@settings(max_examples=150, deadline=None)
@given(
    EVENTS, EVENTS, st.sampled_from([USAGE, SPACED]), CUTS, CUTS, st.sampled_from([b"", b";x=y"])
)
def test_it_is_taken_out(
    before: list[bytes],
    behind: list[bytes],
    usage: bytes,
    chunks: list[int],
    reads: list[int],
    extension: bytes,
) -> None:
    kept = b"".join(before), b"".join(behind) + DONE
    raw = chunked(kept[0] + usage + kept[1], chunks, extension)
    client, found, _ = through(raw, reads)
    assert client.complete
    assert client.body == b"".join(kept)
    if not any(b'"usage"' in event for event in behind):
        assert found.scanner.usage is not None
        assert found.scanner.usage.prompt_tokens == 9


@settings(max_examples=150, deadline=None)
@given(EVENTS, CUTS, CUTS)
def test_without_one_every_byte_passes(
    events: list[bytes], chunks: list[int], reads: list[int]
) -> None:
    raw = chunked(b"".join(events) + DONE, chunks)
    _, _, out = through(raw, reads)
    assert b"".join(out) == raw


def test_every_single_cut() -> None:
    text = LOOKALIKES[0] + USAGE + DONE
    for at in range(1, len(text)):
        raw = chunked(text, [at])
        for read in range(1, len(raw)):
            client, _, _ = through(raw, [read])
            assert client.body == LOOKALIKES[0] + DONE


def test_whole_events_pass_as_they_are() -> None:
    parsed, found = Parsed(), stream()
    token = LOOKALIKES[1].replace(b'"usage"', b'"usual"')
    one = b"%x\r\n%b\r\n" % (len(token), token)
    torn = b"%x\r\n%b\r\n%x\r\n%b\r\n" % (9, token[:9], len(token) - 9, token[9:])
    for read in (one, one + one, one + torn + one):
        parsed.parser.feed_data(read)
        passed = found.feed(read, cast(Any, parsed))
        # Not even copied, unless an event is torn.
        assert passed == read
        assert (passed is read) == (torn not in read)


def test_a_stream_of_something_else_is_not_held_for_ever() -> None:
    parsed, found = Parsed(), stream()
    sent = passed = 0
    for _ in range(100):
        data = b"1000\r\n" + b"x" * 4096 + b"\r\n"
        sent += len(data)
        parsed.parser.feed_data(data)
        passed += len(found.feed(data, cast(Any, parsed)))
    assert sent - passed < 300_000
    assert not found.filters
    assert found.feed(b"5\r\nab", cast(Any, parsed)) == b"5\r\nab"


def test_line_ends_of_two_bytes() -> None:
    text = USAGE.replace(b"\n", b"\r\n")
    other = b"data: 1\r\n\r\n"
    client, _, _ = through(chunked(other + text + other, [5, 7]), [9])
    assert client.body == other * 2


def test_what_looks_like_the_end_of_a_chunk_inside_of_one() -> None:
    text = b"data: 1\n\n\r\ndata: 2\n\n"
    raw = chunked(text, [])
    for read in range(1, len(raw)):
        client, _, _ = through(raw, [read])
        assert client.body == text
