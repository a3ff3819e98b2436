"""The table of the protocol's messages agrees with Envoy's own."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from bench import envoy
from router.picker import ext_proc

LISTING = """
import json
import sys
from envoy.service.ext_proc.v3 import external_processor_pb2
from google.protobuf import descriptor_pool

def listed(field):
    kind = field.message_type or field.enum_type
    entry = field.message_type and field.message_type.GetOptions().map_entry
    if entry:
        kind = field.message_type.fields_by_name["value"].message_type
    group = field.containing_oneof.name if field.containing_oneof else ""
    name = kind.full_name if field.message_type else ""
    many = field.label == field.LABEL_REPEATED if hasattr(field, "label") else field.is_repeated
    return [field.name, field.type, name, many, bool(entry), group]

pool = descriptor_pool.Default()
print(json.dumps({
    name: {field.number: listed(field) for field in pool.FindMessageTypeByName(name).fields}
    for name in json.load(sys.stdin)
}))
"""


@pytest.fixture(scope="module")
def official() -> dict[str, dict[str, list[Any]]]:
    try:
        python = envoy.messages()
    except envoy.NoEnvoyError as error:
        pytest.skip(str(error))
    asked = json.dumps(list(ext_proc.FIELDS))
    done = subprocess.run(
        [*python, "-c", LISTING], input=asked, capture_output=True, text=True, check=True
    )
    found: dict[str, dict[str, list[Any]]] = json.loads(done.stdout)
    return found


def test_every_field_is_envoys(official: dict[str, dict[str, list[Any]]]) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    numbers = {
        "bool": kinds.TYPE_BOOL,
        "bytes": kinds.TYPE_BYTES,
        "string": kinds.TYPE_STRING,
        "enum": kinds.TYPE_ENUM,
    }
    for name, fields in ext_proc.FIELDS.items():
        for field in fields:
            mapped = field.type.startswith("map<")
            kind = field.type.removeprefix("map<string, ").removesuffix(">")
            scalar = kind in numbers
            expected = [
                field.name,
                numbers[kind] if scalar else kinds.TYPE_MESSAGE,
                "" if scalar else kind,
                field.repeated or mapped,
                mapped,
                field.oneof,
            ]
            assert official[name].get(str(field.number)) == expected, (name, field)
