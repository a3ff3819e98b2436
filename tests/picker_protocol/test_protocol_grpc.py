"""The gRPC side of a picker: health, wrong calls, flow control."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from protocol_world import PROCESS, Address, Plane, destination, plane

SERVING = 1
HEALTH = "/grpc.health.v1.Health"


def health(data_plane: Plane, method: str, service: str) -> Any:
    """A call of the health service, whose messages have one field each, like these two."""
    how = data_plane.channel.unary_unary if method == "Check" else data_plane.channel.unary_stream
    ask = how(
        f"{HEALTH}/{method}",
        request_serializer=StringValue.SerializeToString,
        response_deserializer=Int32Value.FromString,
    )
    return ask(StringValue(value=service), timeout=20)


@pytest.mark.parametrize(
    "service", ["", "liveness", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor"]
)
async def test_health(data_plane: Plane, service: str) -> None:
    assert (await health(data_plane, "Check", service)).value == SERVING


async def test_health_of_what_is_not_there(data_plane: Plane) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await health(data_plane, "Check", "no.such.Service")
    assert failed.value.code() == grpc.StatusCode.NOT_FOUND


async def test_health_is_watched(data_plane: Plane) -> None:
    watch = health(data_plane, "Watch", "")
    assert (await watch.read()).value == SERVING
    watch.cancel()


async def test_a_method_that_is_not_there(data_plane: Plane) -> None:
    call = data_plane.channel.unary_unary("/no.such.Service/Method")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(b"", timeout=20)
    assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("message", [b"\xff\xff\xff", b"\x2a\x02\x08\x01", b""])
async def test_messages_that_are_wrong_end_their_call_alone(
    data_plane: Plane, message: bytes
) -> None:
    """Garbage, an answer's headers before any request, and nothing at all."""
    call = data_plane.channel.stream_stream(PROCESS)()
    await call.write(message)
    async with asyncio.timeout(20):
        assert await call.code() != grpc.StatusCode.OK
    assert await data_plane.pick()


async def test_a_client_that_reads_slowly(picker: Address) -> None:
    """Its windows are small, and fill before it reads anything."""
    small = {"http2.lookahead_bytes": 4096, "http2.bdp_probe": 0}
    async with plane(picker.where, picker.model, **small) as slow:
        calls = []
        for _ in range(4):
            call, request = slow.call(), slow.request("word " * 100_000)
            await call.send(request.headers(), *request.pieces())
            calls.append((call, request))
        # Others are served meanwhile.
        async with plane(picker.where, picker.model) as other:
            assert await other.pick()
        for call, request in reversed(calls):
            destination(await call.receive())
            assert await call.passed_on() == (request.body, True)
            await call.end()
