"""What a picker answers to a request, and when."""

from __future__ import annotations

import asyncio
import ipaddress

import pytest
from protocol_world import (
    BUFFERED,
    BUFFERED_PARTIAL,
    NONE,
    STREAMED,
    Plane,
    body_message,
    destination,
    trailers,
)


async def test_the_choice_is_an_address_in_header_and_metadata(data_plane: Plane) -> None:
    found = await data_plane.pick()
    assert found
    for endpoint in found:
        host, _, port = endpoint.rpartition(":")
        ipaddress.ip_address(host.strip("[]"))
        assert 0 < int(port) < 65_536
    assert len(set(found)) == len(found)


async def test_full_duplex_answers_when_the_body_is_whole(data_plane: Plane) -> None:
    call, request = data_plane.call(), data_plane.request("word " * 10_000)
    *first, last = request.pieces()
    await call.send(request.headers(), *first)
    assert await call.nothing()
    await call.send(last)
    destination(await call.held())
    assert await call.passed_on() == (request.body, True)
    await call.end()


@pytest.mark.parametrize("size", [1_000, 65_536, 1_000_000, 4_000_000])
async def test_full_duplex_passes_every_byte_on(data_plane: Plane, size: int) -> None:
    """A picker that keeps a client's window shut waits for ever for the rest of the body."""
    call, request = data_plane.call(), data_plane.request("word " * (size // 5))
    reading = asyncio.ensure_future(call.receive())
    await call.send(request.headers(), *request.pieces())
    destination(await reading)
    assert await call.passed_on() == (request.body, True)
    await call.end()


async def test_full_duplex_with_trailers(data_plane: Plane) -> None:
    call, request = data_plane.call(), data_plane.request()
    await call.send(request.headers(), *request.pieces(ends=False), trailers("request_trailers"))
    destination(await call.receive())
    # The trailers' answer is what ends the body.
    assert await call.passed_on() == (request.body, False)
    await call.end()


async def test_an_empty_last_piece(data_plane: Plane) -> None:
    call, request = data_plane.call(), data_plane.request()
    await call.send(request.headers(), *request.pieces(ends=False))
    assert await call.nothing()
    await call.send(body_message("request_body", b"", last=True))
    destination(await call.held())
    assert await call.passed_on() == (request.body, True)
    await call.end()


async def test_buffered_answers_headers_at_once_and_the_body_with_the_choice(
    data_plane: Plane,
) -> None:
    call, request = data_plane.call(), data_plane.request()
    await call.send(request.headers(request_mode=BUFFERED, answer_mode=NONE))
    headers = await call.receive()
    assert headers.WhichOneof("response") == "request_headers"
    await call.send(*request.pieces(1 << 24))
    assert destination(await call.receive(), "request_body")
    await call.end()


async def test_a_body_of_which_only_the_beginning_is_shown(data_plane: Plane) -> None:
    call, request = data_plane.call(), data_plane.request("word " * 1000)
    await call.send(request.headers(request_mode=BUFFERED_PARTIAL, answer_mode=NONE))
    assert (await call.receive()).WhichOneof("response") == "request_headers"
    await call.send(body_message("request_body", request.body[:1000], last=False))
    assert destination(await call.receive(), "request_body")
    await call.end()


@pytest.mark.parametrize("mode", [STREAMED, NONE])
async def test_a_body_that_may_not_be_waited_for(data_plane: Plane, mode: int) -> None:
    """The choice comes with the headers, since the data plane shows a body after that, or never."""
    call, request = data_plane.call(), data_plane.request()
    await call.send(request.headers(request_mode=mode, answer_mode=NONE))
    assert destination(await call.receive())
    if mode == STREAMED:
        for piece in request.pieces(40):
            await call.send(piece)
            answer = await call.receive()
            assert answer.WhichOneof("response") == "request_body"
            assert not answer.request_body.response.HasField("body_mutation")
    await call.end()


async def test_a_request_without_a_body(data_plane: Plane) -> None:
    call, request = data_plane.call(), data_plane.request(path="/v1/models")
    await call.send(request.headers(method="GET", end_of_stream=True))
    answer = await call.receive()
    # A picker may know the answer itself.
    if answer.WhichOneof("response") == "immediate_response":
        assert answer.immediate_response.status.code == 200
    else:
        assert destination(answer)
    await call.end()


async def test_only_of_the_subset(data_plane: Plane) -> None:
    known = set()
    for number in range(12):
        known |= set(await data_plane.pick(f"{number} " + "different " * 50))
    for only in sorted(known):
        assert await data_plane.pick("x", subset=[only]) == [only]
        assert await data_plane.pick("x", subset=["192.0.2.1:1", only]) == [only]


@pytest.mark.parametrize("subset", [["192.0.2.1:8000"], []])
async def test_a_subset_of_nobody_is_503(data_plane: Plane, subset: list[str]) -> None:
    call, request = data_plane.call(), data_plane.request()
    await call.send(request.headers(subset=subset), *request.pieces())
    answer = await call.receive()
    assert answer.WhichOneof("response") == "immediate_response"
    assert answer.immediate_response.status.code == 503
    await call.end()
