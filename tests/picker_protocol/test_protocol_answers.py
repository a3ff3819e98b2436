"""Answers that a picker is shown, and calls that end in any way."""

from __future__ import annotations

import asyncio

import grpc
from protocol_world import NONE, Call, Plane, answer_headers, body_message, destination, trailers


async def sent(data_plane: Plane, **more: int) -> tuple[Call, str]:
    """A call whose request was sent on, and where."""
    call, request = data_plane.call(), data_plane.request()
    await call.send(request.headers(**more), *request.pieces())
    first = destination(await call.receive())[0]
    await call.passed_on()
    return call, first


async def test_an_answer_comes_back_as_it_was(data_plane: Plane) -> None:
    call, served = await sent(data_plane)
    await call.send(answer_headers(served))
    assert (await call.receive()).WhichOneof("response") == "response_headers"
    pieces = [
        b'{"id":"x","choices":[],',
        b'"usage":{"prompt_tokens":3,',
        b'"completion_tokens":2}}',
    ]
    for piece in pieces:
        await call.send(body_message("response_body", piece, last=False))
    await call.send(body_message("response_body", b"", last=True))
    assert await call.passed_on("response_body") == (b"".join(pieces), True)
    assert await call.end() == grpc.StatusCode.OK


async def test_pieces_come_back_one_by_one(data_plane: Plane) -> None:
    """A stream's client waits for each."""
    call, served = await sent(data_plane)
    await call.send(answer_headers(served))
    await call.receive()
    for number in range(20):
        event = b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number
        await call.send(body_message("response_body", event, last=False))
        piece = (await call.receive()).response_body.response.body_mutation.streamed_response
        assert piece.body == event
    await call.send(body_message("response_body", b"data: [DONE]\n\n", last=False))
    await call.receive()
    await call.send(trailers("response_trailers"))
    assert (await call.receive()).WhichOneof("response") == "response_trailers"
    assert await call.end() == grpc.StatusCode.OK


async def test_a_large_answer(data_plane: Plane) -> None:
    call, served = await sent(data_plane)
    await call.send(answer_headers(served))
    await call.receive()
    whole = bytes(range(256)) * 8192
    reading = asyncio.ensure_future(call.passed_on("response_body"))
    for at in range(0, len(whole), 65_000):
        await call.send(body_message("response_body", whole[at : at + 65_000], last=False))
    await call.send(body_message("response_body", b"", last=True))
    assert await reading == (whole, True)
    await call.end()


async def test_an_answer_that_is_not_shown(data_plane: Plane) -> None:
    call, served = await sent(data_plane, answer_mode=NONE)
    await call.send(answer_headers(served, end_of_stream=True))
    assert (await call.receive()).WhichOneof("response") == "response_headers"
    assert await call.end() == grpc.StatusCode.OK


async def test_calls_that_end_early(data_plane: Plane) -> None:
    request = data_plane.request()
    # With nothing, with headers, and with a part of a body.
    for messages in ([], [request.headers()], [request.headers(), request.pieces(20)[0]]):
        call = data_plane.call()
        await call.send(*messages)
        assert await call.end() == grpc.StatusCode.OK
    # With a choice, whose answer never came.
    call, _ = await sent(data_plane)
    assert await call.end() == grpc.StatusCode.OK
    assert await data_plane.pick()


async def test_calls_that_are_reset(data_plane: Plane) -> None:
    request = data_plane.request()
    for messages in ([request.headers()], [request.headers(), request.pieces(20)[0]]):
        call = data_plane.call()
        await call.send(*messages)
        call.call.cancel()
    call, _ = await sent(data_plane)
    call.call.cancel()
    assert await data_plane.pick()


async def test_many_calls_at_once(data_plane: Plane) -> None:
    async def one(number: int) -> None:
        call, request = data_plane.call(), data_plane.request(f"{number} " * 2000)
        await call.send(request.headers(), *request.pieces(1000))
        served = destination(await call.receive())[0]
        assert await call.passed_on() == (request.body, True)
        await call.send(answer_headers(served))
        await call.receive()
        await call.send(body_message("response_body", b"{}", last=True))
        assert await call.passed_on("response_body") == (b"{}", True)
        assert await call.end() == grpc.StatusCode.OK

    await asyncio.gather(*map(one, range(100)))
