"""The messages of the endpoint picker protocol, read and made.

The protocol is Gateway API Inference Extension's proposal 004, version 1.0.0; the messages are
Envoy's ``envoy.service.ext_proc.v3`` (``router/picker/ext_proc.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
from google.protobuf.message import DecodeError

from router.http.request import DIRECTING as DIRECTING_HEADERS
from router.http.request import PREFILLER as PREFILLER_HEADER
from router.picker import ext_proc as protocol

SUBSET_NAMESPACE: Final = "envoy.lb.subset_hint"
SUBSET_KEY: Final = "x-gateway-destination-endpoint-subset"
NAMESPACE: Final = "envoy.lb"
DESTINATION: Final = "x-gateway-destination-endpoint"
SERVED: Final = "x-gateway-destination-endpoint-served"

NONE: Final = 0
STREAMED: Final = 1
BUFFERED: Final = 2
BUFFERED_PARTIAL: Final = 3
FULL_DUPLEX_STREAMED: Final = 4
GRPC: Final = 5

PREFILLER: Final = PREFILLER_HEADER.decode()
DIRECTING: Final = frozenset(name.decode() for name in DIRECTING_HEADERS)

PIECE: Final = 62_000
"""Bytes of a body in one message to the data plane: Envoy takes up to 64 KiB, and other pickers
send as much."""

_OVERWRITE: Final = 2
"""``HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD``."""

Header = tuple[str, bytes]


class Change(msgspec.Struct, frozen=True):
    """What is to become of a request. Most are as one before."""

    endpoints: str
    """``ip:port``, and others in the order in which they are to be tried, separated by commas."""
    headers: tuple[Header, ...] = ()
    """More headers to set."""
    strip: tuple[str, ...] = ()
    """Headers of the client's that are taken out: those of `DIRECTING`."""


def _set(mutation: Any, headers: Iterable[Header]) -> None:
    for name, value in headers:
        option = mutation.set_headers.add()
        option.header.key = name
        option.header.raw_value = value
        option.append_action = _OVERWRITE


def _change(response: Any, part: str, change: Change) -> None:
    common = getattr(response, part).response
    common.clear_route_cache = True
    _set(common.header_mutation, ((DESTINATION, change.endpoints.encode()), *change.headers))
    common.header_mutation.remove_headers.extend(change.strip)
    fields = response.dynamic_metadata.fields[NAMESPACE].struct_value.fields
    fields[DESTINATION].string_value = change.endpoints


def headers_changed(change: Change) -> bytes:
    """The answer to a request's headers, with the choice."""
    response = protocol.ProcessingResponse()
    _change(response, "request_headers", change)
    return bytes(response.SerializeToString())


headers_as_before = lru_cache(maxsize=4096)(headers_changed)
"""The same, kept: for changes that come again."""


def body_changed(change: Change, body: bytes | None) -> bytes:
    """The answer to a buffered body, with the choice. body: another one in its place."""
    response = protocol.ProcessingResponse()
    _change(response, "request_body", change)
    if body is not None:
        response.request_body.response.body_mutation.body = body
    return bytes(response.SerializeToString())


def _constant(**parts: Any) -> bytes:
    return bytes(protocol.ProcessingResponse(**parts).SerializeToString())


_COMMON = protocol.CommonResponse()
REQUEST_HEADERS_GO_ON: Final = _constant(request_headers=protocol.HeadersResponse(response=_COMMON))
REQUEST_BODY_GOES_ON: Final = _constant(request_body=protocol.BodyResponse(response=_COMMON))
REQUEST_TRAILERS_GO_ON: Final = _constant(request_trailers=protocol.TrailersResponse())
RESPONSE_HEADERS_GO_ON: Final = _constant(
    response_headers=protocol.HeadersResponse(response=_COMMON)
)
RESPONSE_BODY_GOES_ON: Final = _constant(response_body=protocol.BodyResponse(response=_COMMON))
RESPONSE_TRAILERS_GO_ON: Final = _constant(response_trailers=protocol.TrailersResponse())


def request_piece(body: bytes, *, last: bool) -> bytes:
    """A piece of the request's body, passed on to the replica."""
    response = protocol.ProcessingResponse()
    piece = response.request_body.response.body_mutation.streamed_response
    piece.body = body
    if last:
        piece.end_of_stream = True
    return bytes(response.SerializeToString())


def response_piece(body: bytes, *, last: bool, drain: bool) -> bytes:
    """A piece of the answer's body, passed on to the client. drain: asks the data plane to show no
    more of this request; Envoy 1.40 passes that over, and gRPC's own data plane does it."""
    response = protocol.ProcessingResponse()
    if drain:
        response.request_drain = True
    piece = response.response_body.response.body_mutation.streamed_response
    piece.body = body
    if last:
        piece.end_of_stream = True
    return bytes(response.SerializeToString())


def pieces(body: Sequence[bytes]) -> list[bytes]:
    """The same body in pieces that may be sent."""
    if all(len(piece) <= PIECE for piece in body):
        return list(body)
    return [piece[at : at + PIECE] for piece in body for at in range(0, len(piece), PIECE)]


def response_headers_with(headers: Iterable[Header]) -> bytes:
    """The answer to an answer's headers, with more of them."""
    response = protocol.ProcessingResponse()
    _set(response.response_headers.response.header_mutation, headers)
    return bytes(response.SerializeToString())


def immediate(status: int, body: bytes, headers: Iterable[Header], details: str) -> bytes:
    """An answer of the picker's own. details: a word for the data plane's log."""
    response = protocol.ProcessingResponse()
    answer = response.immediate_response
    answer.status.code = status
    answer.body = body
    answer.details = details
    _set(answer.headers, headers)
    return bytes(response.SerializeToString())


def read(data: bytes) -> Any:
    """The data plane's message. Raises ValueError for what is none."""
    try:
        return protocol.ProcessingRequest.FromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from None


def subset_of(request: Any) -> list[str] | None:
    """The endpoints that the data plane allows; None where it says nothing."""
    found = _metadata(request, SUBSET_NAMESPACE, SUBSET_KEY)
    if found is None:
        return None
    kind = found.WhichOneof("kind")
    if kind == "list_value":
        return [value.string_value.strip() for value in found.list_value.values]
    if kind == "string_value":
        return [name.strip() for name in found.string_value.split(",") if name.strip()]
    return []


def served_of(request: Any) -> str:
    """The endpoint that answered, as the data plane has it; empty where it does not say."""
    found = _metadata(request, NAMESPACE, SERVED)
    return "" if found is None else str(found.string_value)


def _metadata(request: Any, namespace: str, key: str) -> Any | None:
    if not request.HasField("metadata_context"):
        return None
    spaces = request.metadata_context.filter_metadata
    if namespace not in spaces:
        return None
    fields = spaces[namespace].fields
    return fields.get(key)
