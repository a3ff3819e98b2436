"""A data plane for tests: calls of the endpoint picker protocol, message by message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
import grpc.aio

from router.picker import ext_proc as protocol

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
DESTINATION = "x-gateway-destination-endpoint"
SECONDS = 20.0
"""How long a picker may take for anything; far more than it does."""
FULL_DUPLEX, BUFFERED_PARTIAL, BUFFERED, STREAMED, NONE = 4, 3, 2, 1, 0


class Address(NamedTuple):
    """Where the picker is, and what its endpoints serve."""

    where: str
    model: str


def header_map(**headers: str) -> Any:
    made = protocol.HttpHeaders().headers
    for name, value in headers.items():
        header = made.headers.add()
        header.key = name.replace("__", ":").replace("_", "-")
        header.raw_value = value.encode()
    return made


class Request:
    """A chat, as a data plane shows it."""

    def __init__(self, model: str, text: str = "hello", path: str = "/v1/chat/completions") -> None:
        self.path = path
        message = {"role": "user", "content": text}
        self.body = json.dumps({"model": model, "max_tokens": 4, "messages": [message]}).encode()

    def headers(self, **more: Any) -> Any:
        """The first message of a call. more: end_of_stream, method, request_mode, answer_mode,
        subset."""
        made = protocol.ProcessingRequest()
        end = more.get("end_of_stream", False)
        headers = header_map(
            __method=more.get("method", "POST"),
            __path=self.path,
            __scheme="http",
            __authority="models.example",
            content_type="application/json",
            x_request_id="protocol-test",
        )
        made.request_headers.headers.CopyFrom(headers)
        made.request_headers.end_of_stream = end
        made.protocol_config.request_body_mode = more.get("request_mode", FULL_DUPLEX)
        made.protocol_config.response_body_mode = more.get("answer_mode", FULL_DUPLEX)
        subset = more.get("subset")
        if subset is not None:
            space = made.metadata_context.filter_metadata["envoy.lb.subset_hint"]
            listed = space.fields["x-gateway-destination-endpoint-subset"].list_value
            listed.SetInParent()
            for name in subset:
                listed.values.add().string_value = name
        return made

    def pieces(self, size: int = 16_384, *, ends: bool = True) -> list[Any]:
        """The body's messages. ends: the last one says that it is the last."""
        cuts = [self.body[at : at + size] for at in range(0, len(self.body), size)]
        return [
            body_message("request_body", cut, last=ends and number == len(cuts))
            for number, cut in enumerate(cuts, 1)
        ]


def body_message(part: str, body: bytes, *, last: bool) -> Any:
    made = protocol.ProcessingRequest()
    getattr(made, part).body = body
    getattr(made, part).end_of_stream = last
    return made


def answer_headers(served: str = "", *, end_of_stream: bool = False) -> Any:
    made = protocol.ProcessingRequest()
    made.response_headers.headers.CopyFrom(
        header_map(__status="200", content_type="application/json")
    )
    made.response_headers.end_of_stream = end_of_stream
    if served:
        fields = made.metadata_context.filter_metadata["envoy.lb"].fields
        fields[f"{DESTINATION}-served"].string_value = served
    return made


def trailers(part: str) -> Any:
    made = protocol.ProcessingRequest()
    getattr(made, part).trailers.CopyFrom(header_map(x_end="yes"))
    return made


class Call:
    """One call."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def send(self, *messages: Any) -> None:
        async with asyncio.timeout(SECONDS):
            for message in messages:
                await self.call.write(message)

    async def receive(self) -> Any:
        """The next message; None at the end."""
        async with asyncio.timeout(SECONDS):
            found = await self.call.read()
        return None if found is grpc.aio.EOF else found

    async def nothing(self, seconds: float = 0.2) -> bool:
        """Whether nothing comes for so long. Only a picker that breaks the rules is quick."""
        reading = asyncio.ensure_future(self.call.read())
        done, _ = await asyncio.wait({reading}, timeout=seconds)
        self._early = reading
        return not done

    async def held(self) -> Any:
        """What `nothing` waited for in vain."""
        async with asyncio.timeout(SECONDS):
            return await self._early

    async def passed_on(self, part: str = "request_body") -> tuple[bytes, bool]:
        """A streamed body as it comes back, up to its last piece. Returns it, and whether that one
        says that it is the last; where none does, up to the trailers."""
        found = b""
        while True:
            message = await self.receive()
            if message.WhichOneof("response") != part:
                return found, False
            piece = getattr(message, part).response.body_mutation.streamed_response
            assert len(piece.body) <= 65_536
            found += piece.body
            if piece.end_of_stream:
                return found, True

    async def end(self) -> Any:
        """Say no more; the status with which the call ends."""
        async with asyncio.timeout(SECONDS):
            await self.call.done_writing()
            while await self.call.read() is not grpc.aio.EOF:
                pass
            return await self.call.code()


def destination(message: Any, part: str = "request_headers") -> list[str]:
    """The endpoints of an answer with a choice: in header and metadata the same."""
    assert message.WhichOneof("response") == part, message
    common = getattr(message, part).response
    told = {
        option.header.key: option.header.raw_value.decode() or option.header.value
        for option in common.header_mutation.set_headers
    }
    metadata = message.dynamic_metadata.fields["envoy.lb"].struct_value.fields
    assert told[DESTINATION] == metadata[DESTINATION].string_value
    assert common.clear_route_cache
    return [name.strip() for name in told[DESTINATION].split(",")]


class Plane:
    """A data plane: one connection to the picker."""

    def __init__(self, channel: grpc.aio.Channel, model: str) -> None:
        self.channel = channel
        self.model = model
        self._process = channel.stream_stream(
            PROCESS,
            request_serializer=protocol.ProcessingRequest.SerializeToString,
            response_deserializer=protocol.ProcessingResponse.FromString,
        )

    def call(self) -> Call:
        return Call(self._process())

    def request(self, text: str = "hello", **more: Any) -> Request:
        return Request(self.model, text, **more)

    async def pick(self, text: str = "hello", **more: Any) -> list[str]:
        """The endpoints for one request."""
        call, request = self.call(), self.request(text)
        await call.send(request.headers(**more), *request.pieces())
        found = destination(await call.receive())
        await call.passed_on()
        await call.end()
        return found


@asynccontextmanager
async def plane(address: str, model: str, **options: int) -> AsyncIterator[Plane]:
    given = [(f"grpc.{name}", value) for name, value in options.items()]
    async with grpc.aio.insecure_channel(address, options=given) as channel:
        yield Plane(channel, model)
