"""What a message says: text, media, tool calls and results, in any of the APIs' spellings.

What the engines do not put into the prompt is left out: ``cache_control`` (clients move it to
another message at each step), ids and states of items, signatures of reasoning.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Final

import msgspec
import xxhash

from router.prompt.canonical import (
    ABSENT,
    ARGUMENTS,
    BRACE,
    BRACKET,
    CALL,
    FIELD,
    ITEM,
    KEY,
    LARGEST_VALUE,
    MEDIA,
    NULL,
    OTHER,
    QUOTE,
    REASONING,
    RESULT,
    RESULT_END,
    TEXT,
    TOOLS,
    Add,
    Memo,
    compact,
    crowded,
    dump,
    is_plain,
    string,
    value,
    words,
)
from router.prompt.prompt import MEDIA_BYTES, PromptError

MOST_MEDIA: Final = 1024
"""Media of one body that weigh so much. Of all others there is the digest alone, since a short URL
would weigh many times its length."""

MOST_FIELDS: Final = 64
"""The most fields of a part or an item that are looked at one by one."""

Fields = dict[str, msgspec.Raw]

_decode_parts = msgspec.json.Decoder(list[str | Fields]).decode
_decode_fields = msgspec.json.Decoder(Fields).decode

_TEXT_FIELD: Final = {
    b'"text"': "text",
    b'"input_text"': "text",
    b'"output_text"': "text",
    b'"reasoning_text"': "text",
    b'"summary_text"': "text",
    b'"refusal"': "refusal",
}
_MEDIA_FIELDS: Final = frozenset(
    (
        "image_url",
        "image_embeds",
        "input_audio",
        "audio_url",
        "audio_embeds",
        "video_url",
        "video_embeds",
        "prompt_embeds",
        "source",
        "file",
        "file_data",
        "file_url",
        "file_id",
        "uuid",
    )
)
_UNSEEN: Final = frozenset(
    ("type", "cache_control", "id", "status", "annotations", "logprobs", "citations", "detail")
)
"""Fields of parts that no template puts into the prompt."""
_EMPTY_TEXT: Final = TEXT + b'""'  # alone it is the same as an empty string, and that as none
BILLING: Final = b'"x-anthropic-billing-header'
"""The start of the billing line, which ``write_system`` leaves out."""
_BILLING_WITHIN: Final = 256
"""Bytes of a system prompt's JSON in which the billing line starts: it is the first text there."""


def write_content(add: Add, raw: msgspec.Raw, plain: bool) -> None:
    """A content field: a string, an array of parts, or null. One text part is like a string."""
    view = memoryview(raw)
    first = view[0]
    if first == QUOTE:
        if len(view) > 2:
            add(TEXT)
            add(raw if plain else string(raw, plain))
    elif first == BRACKET:
        add(parts_memo(raw))
    elif raw != NULL:
        add(OTHER)
        add(compact(raw))


def write_system(add: Add, raw: msgspec.Raw, plain: bool) -> None:
    """A system prompt, less the billing line that some agents put first and change each time.

    vLLM drops that line too, since nothing behind it could be reused otherwise.
    """
    if BILLING not in bytes(memoryview(raw)[:_BILLING_WITHIN]):
        write_content(add, raw, plain)
        return
    try:
        parts: list[str | Fields] = (
            [msgspec.json.decode(raw)] if memoryview(raw)[0] == QUOTE else _decode_parts(raw)
        )
    except (msgspec.ValidationError, UnicodeDecodeError):
        write_content(add, raw, plain)
        return
    if crowded(len(parts), len(memoryview(raw))):
        write_content(add, raw, plain)
        return
    for part in parts:
        text = part if isinstance(part, str) else words(part.get("text", ABSENT))
        if text.startswith("x-anthropic-billing-header"):
            text = text.partition("\n")[2]
            if text:
                add(TEXT)
                add(dump(text))
        else:
            _write_part(add, part, plain)


def write_odd(add: Add, raw: msgspec.Raw, field: str) -> None:
    """Messages or items of a shape that no engine takes, or too many to look at one by one.

    Raises PromptError where they are no array.
    """
    if memoryview(raw)[0] != BRACKET:
        raise PromptError(f"{field!r} has the wrong type: expected array.", field)
    add(ITEM)
    add(raw)


class Reasoned(bytes):
    """Canonical parts, some of which are reasoning."""

    silent: bytes
    """The same parts without the reasoning."""


class Results(bytes):
    """Canonical parts that are tool results, without any text of the user."""


_reasoning = re.compile(rb"\x08[^\x00-\x1f]*")


def _canonical_parts(raw: msgspec.Raw) -> bytes:
    pieces: list[bytes | msgspec.Raw] = []
    _write_parts(pieces.append, raw, is_plain(raw))
    text = b"".join(pieces)
    if text == _EMPTY_TEXT:
        return b""
    if REASONING in text:
        text = Reasoned(text)
        text.silent = _reasoning.sub(b"", text)
    elif text.startswith(RESULT):
        end = text.rfind(RESULT_END) + 1
        if text[end : end + 1] not in (TEXT, MEDIA):
            return Results(text)
    return text


parts_memo: Final = Memo(_canonical_parts, 64 << 20)
"""Remembers the canonical form of content that is a list of parts."""


def _write_parts(add: Add, raw: msgspec.Raw, plain: bool) -> None:
    try:
        parts = _decode_parts(raw)
        usual = not crowded(len(parts), len(memoryview(raw)))
    except (msgspec.ValidationError, UnicodeDecodeError):
        usual = False
    if not usual:
        add(OTHER)
        add(raw)
        return
    for part in parts:
        _write_part(add, part, plain)


def _write_part(add: Add, part: str | Fields, plain: bool) -> None:
    if isinstance(part, str):
        add(TEXT)
        add(dump(part))
        return
    if len(part) > MOST_FIELDS:
        add(OTHER)
        add(dump(part))
        return
    kind = bytes(string(part.get("type", NULL), plain))
    field = _TEXT_FIELD.get(kind)
    if field is not None:
        text = part.get(field, NULL)
        if memoryview(text)[0] == QUOTE:
            add(TEXT)
            add(string(text, plain))
            if len(part) > 2:
                _write_extras(add, part, field, plain)
            return
    elif kind == b'"tool_use"':
        add(CALL)
        add(value(part.get("id", NULL), plain))
        add(KEY)
        add(value(part.get("name", NULL), plain))
        write_arguments(add, part.get("input", NULL))
        return
    elif kind == b'"tool_result"':
        add(RESULT)
        add(value(part.get("tool_use_id", NULL), plain))
        write_content(add, part.get("content", NULL), plain)
        add(RESULT_END)
        return
    elif kind == b'"thinking"':
        add(REASONING)
        add(value(part.get("thinking", NULL), plain))
        return
    elif kind == b'"redacted_thinking"':
        return
    elif not _MEDIA_FIELDS.isdisjoint(part):
        _write_media(add, part, plain)
        return
    add(OTHER)
    add(kind)
    _write_extras(add, part, "", plain)


def _write_extras(add: Add, part: Fields, but: str, plain: bool) -> None:
    for name in sorted(part):
        raw = part[name]
        if name != but and name not in _UNSEEN and raw != NULL:
            add(KEY)
            add(dump(name))
            add(value(raw, plain))


def _write_media(add: Add, part: Fields, plain: bool) -> None:
    """A digest, which ``weighed`` repeats.

    What has a uuid is known to the engine by that alone, so that its data may be left out once the
    engine has them.
    """
    hasher = xxhash.xxh3_128()
    known = part.get("uuid", NULL)
    for name in ("uuid",) if known != NULL else sorted(part):
        raw = part[name]
        if name in _UNSEEN or raw == NULL:
            continue
        hasher.update(KEY + dump(name))
        if memoryview(raw)[0] == BRACE:
            fields = _decode_fields(raw)
            if len(fields) > MOST_FIELDS:
                hasher.update(dump(fields))
                continue
            for inner in sorted(fields):
                if inner not in _UNSEEN and fields[inner] != NULL:
                    hasher.update(FIELD + dump(inner))
                    hasher.update(value(fields[inner], plain))
        else:
            hasher.update(value(raw, plain))
    add(MEDIA)
    add(hasher.hexdigest().encode())


_medium = re.compile(rb"\x03([0-9a-f]{32})")


def weighed(text: bytes) -> tuple[bytes, tuple[int, ...]]:
    """The canonical bytes of a body, in which media weigh `MEDIA_BYTES`, and where each of these
    ends."""
    pieces: list[bytes] = []
    ends: list[int] = []
    at = size = 0
    for found in islice(_medium.finditer(text), MOST_MEDIA):
        before = text[at : found.start()]
        pieces += (before, MEDIA, found[1] * (MEDIA_BYTES // 32))
        size += len(before) + len(MEDIA) + MEDIA_BYTES
        ends.append(size)
        at = found.end()
    pieces.append(text[at:])
    return b"".join(pieces), tuple(ends)


def write_arguments(add: Add, raw: msgspec.Raw) -> None:
    """A tool call's arguments: a string of JSON as the model wrote it, or an object."""
    add(ARGUMENTS)
    first = memoryview(raw)[0]
    if first == QUOTE:
        add(string(raw, False))
    elif raw != NULL:
        add(compact(raw))


def _tools(raw: msgspec.Raw) -> bytes:
    """Tool definitions in canonical form; null is the same as nothing, and so is an empty array."""
    if len(memoryview(raw)) > LARGEST_VALUE:
        return TOOLS + bytes(raw)
    try:
        tools = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return TOOLS + bytes(raw)
    if not tools:
        return b""
    if isinstance(tools, list) and not crowded(len(tools), len(memoryview(raw))):
        for tool in tools:
            if isinstance(tool, dict):
                for level in (tool, tool.get("function")):
                    if isinstance(level, dict):
                        for name in [
                            k for k, v in level.items() if v is None or k == "cache_control"
                        ]:
                            del level[name]
    return TOOLS + dump(tools)


tools = Memo(_tools, 32 << 20)
"""Remembers the canonical form of tool definitions: agents send the same ones in every step."""
