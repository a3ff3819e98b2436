"""The classes of the protocol's messages, made from a table of their fields.

Names, numbers and types are those of Envoy's ``envoy/service/ext_proc/v3/external_processor.proto``
and ``envoy/config/core/v3/base.proto``. A field that the picker neither reads nor sets is left out;
protobuf keeps such fields of a message that it reads.

The package that has all of Envoy's messages, xds-protos, cannot be used: it also installs modules
of ``opentelemetry.proto`` and ``google.api`` over those of their own packages.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

SERVICE: Final = "envoy.service.ext_proc.v3"
CORE: Final = "envoy.config.core.v3"
_STRUCT: Final = "google.protobuf.Struct"


class Field(NamedTuple):
    """One field of a message."""

    number: int
    name: str
    type: str
    """``bytes``, ``string``, ``bool``, ``enum`` (read as a number), or a message's full name."""
    repeated: bool = False
    oneof: str = ""
    """The group of which at most one field is set."""


_REQUEST = "request"
_RESPONSE = "response"
_SCALARS: Final = {
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    # The same on the wire as an enumeration, of which only the numbers are needed.
    "enum": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
}

FIELDS: Final[dict[str, tuple[Field, ...]]] = {
    f"{CORE}.HeaderValue": (
        Field(1, "key", "string"),
        Field(2, "value", "string"),
        Field(3, "raw_value", "bytes"),
    ),
    f"{CORE}.HeaderMap": (Field(1, "headers", f"{CORE}.HeaderValue", repeated=True),),
    f"{CORE}.HeaderValueOption": (
        Field(1, "header", f"{CORE}.HeaderValue"),
        Field(3, "append_action", "enum"),
    ),
    f"{CORE}.Metadata": (Field(1, "filter_metadata", f"map<string, {_STRUCT}>"),),
    "envoy.type.v3.HttpStatus": (Field(1, "code", "enum"),),
    f"{SERVICE}.ProtocolConfiguration": (
        Field(1, "request_body_mode", "enum"),
        Field(2, "response_body_mode", "enum"),
    ),
    f"{SERVICE}.HttpHeaders": (
        Field(1, "headers", f"{CORE}.HeaderMap"),
        Field(3, "end_of_stream", "bool"),
    ),
    f"{SERVICE}.HttpBody": (
        Field(1, "body", "bytes"),
        Field(2, "end_of_stream", "bool"),
        Field(3, "end_of_stream_without_message", "bool"),
    ),
    f"{SERVICE}.HttpTrailers": (Field(1, "trailers", f"{CORE}.HeaderMap"),),
    f"{SERVICE}.ProcessingRequest": (
        Field(2, "request_headers", f"{SERVICE}.HttpHeaders", oneof=_REQUEST),
        Field(3, "response_headers", f"{SERVICE}.HttpHeaders", oneof=_REQUEST),
        Field(4, "request_body", f"{SERVICE}.HttpBody", oneof=_REQUEST),
        Field(5, "response_body", f"{SERVICE}.HttpBody", oneof=_REQUEST),
        Field(6, "request_trailers", f"{SERVICE}.HttpTrailers", oneof=_REQUEST),
        Field(7, "response_trailers", f"{SERVICE}.HttpTrailers", oneof=_REQUEST),
        Field(8, "metadata_context", f"{CORE}.Metadata"),
        Field(10, "observability_mode", "bool"),
        Field(11, "protocol_config", f"{SERVICE}.ProtocolConfiguration"),
    ),
    f"{SERVICE}.HeaderMutation": (
        Field(1, "set_headers", f"{CORE}.HeaderValueOption", repeated=True),
        Field(2, "remove_headers", "string", repeated=True),
    ),
    f"{SERVICE}.StreamedBodyResponse": (
        Field(1, "body", "bytes"),
        Field(2, "end_of_stream", "bool"),
    ),
    f"{SERVICE}.BodyMutation": (
        Field(1, "body", "bytes", oneof="mutation"),
        Field(3, "streamed_response", f"{SERVICE}.StreamedBodyResponse", oneof="mutation"),
    ),
    f"{SERVICE}.CommonResponse": (
        Field(2, "header_mutation", f"{SERVICE}.HeaderMutation"),
        Field(3, "body_mutation", f"{SERVICE}.BodyMutation"),
        Field(5, "clear_route_cache", "bool"),
    ),
    f"{SERVICE}.HeadersResponse": (Field(1, "response", f"{SERVICE}.CommonResponse"),),
    f"{SERVICE}.BodyResponse": (Field(1, "response", f"{SERVICE}.CommonResponse"),),
    f"{SERVICE}.TrailersResponse": (Field(1, "header_mutation", f"{SERVICE}.HeaderMutation"),),
    f"{SERVICE}.ImmediateResponse": (
        Field(1, "status", "envoy.type.v3.HttpStatus"),
        Field(2, "headers", f"{SERVICE}.HeaderMutation"),
        Field(3, "body", "bytes"),
        Field(5, "details", "string"),
    ),
    f"{SERVICE}.ProcessingResponse": (
        Field(1, "request_headers", f"{SERVICE}.HeadersResponse", oneof=_RESPONSE),
        Field(2, "response_headers", f"{SERVICE}.HeadersResponse", oneof=_RESPONSE),
        Field(3, "request_body", f"{SERVICE}.BodyResponse", oneof=_RESPONSE),
        Field(4, "response_body", f"{SERVICE}.BodyResponse", oneof=_RESPONSE),
        Field(5, "request_trailers", f"{SERVICE}.TrailersResponse", oneof=_RESPONSE),
        Field(6, "response_trailers", f"{SERVICE}.TrailersResponse", oneof=_RESPONSE),
        Field(7, "immediate_response", f"{SERVICE}.ImmediateResponse", oneof=_RESPONSE),
        Field(8, "dynamic_metadata", _STRUCT),
        Field(11, "request_drain", "bool"),
    ),
}


def _describe(message: descriptor_pb2.DescriptorProto, field: Field) -> None:
    """Add one field to a message."""
    kind = field.type
    made = message.field.add(number=field.number, name=field.name)
    made.label = made.LABEL_REPEATED if field.repeated else made.LABEL_OPTIONAL
    if kind.startswith("map<"):
        # A map is a repeated message of key and value, with a mark.
        entry = message.nested_type.add(name="FilterMetadataEntry")
        entry.options.map_entry = True
        _describe(entry, Field(1, "key", "string"))
        _describe(entry, Field(2, "value", kind.removeprefix("map<string, ").removesuffix(">")))
        made.label, made.type = made.LABEL_REPEATED, made.TYPE_MESSAGE
        made.type_name = f".{CORE}.{message.name}.{entry.name}"
    elif kind in _SCALARS:
        made.type = _SCALARS[kind]
    else:
        made.type, made.type_name = made.TYPE_MESSAGE, f".{kind}"
    if field.oneof:
        groups = [group.name for group in message.oneof_decl]
        if field.oneof not in groups:
            message.oneof_decl.add(name=field.oneof)
            groups.append(field.oneof)
        made.oneof_index = groups.index(field.oneof)


def _make() -> descriptor_pool.DescriptorPool:
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    for name, fields in FIELDS.items():
        package, _, short = name.rpartition(".")
        file = files.get(package)
        if file is None:
            file = files[package] = descriptor_pb2.FileDescriptorProto(
                name=f"{package}.proto", package=package, syntax="proto3"
            )
            file.dependency.append(struct_pb2.DESCRIPTOR.name)
            file.dependency.extend(known.name for known in files.values() if known is not file)
        message = file.message_type.add(name=short)
        for field in fields:
            _describe(message, field)
    # A pool of its own: a program may hold Envoy's messages of another package, too.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    for file in files.values():
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL: Final = _make()


def _class(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


ProcessingRequest: Final = _class(f"{SERVICE}.ProcessingRequest")
ProcessingResponse: Final = _class(f"{SERVICE}.ProcessingResponse")
HttpHeaders: Final = _class(f"{SERVICE}.HttpHeaders")
CommonResponse: Final = _class(f"{SERVICE}.CommonResponse")
HeadersResponse: Final = _class(f"{SERVICE}.HeadersResponse")
BodyResponse: Final = _class(f"{SERVICE}.BodyResponse")
TrailersResponse: Final = _class(f"{SERVICE}.TrailersResponse")
