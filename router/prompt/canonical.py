"""The one spelling of a JSON value that prompts are compared in.

A string's canonical form is its JSON spelling with the fewest escapes, quotes included. Nearly
every client already sends that, so that nothing has to be decoded: the body's bytes from quote to
quote are the canonical bytes. Only ``\\u`` and ``\\/`` can spell a character in a second way.

Around the values stand tags: single control bytes other than JSON's whitespace. No JSON text can
hold one, so that a value never runs into the next and two structures never give the same bytes.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import xxhash

Add = Callable[["bytes | msgspec.Raw"], object]
"""Appends to the pieces that are joined to the canonical bytes."""

T = TypeVar("T")

ABSENT: Final = msgspec.Raw(b"")
"""Stands for a field the body does not have; compare with ``is``."""
NULL: Final = msgspec.Raw(b"null")

# Tags. Each opens one field of a message and ends the one before.
MESSAGE: Final = b"\x01"
TEXT: Final = b"\x02"
MEDIA: Final = b"\x03"
CALL: Final = b"\x04"
ARGUMENTS: Final = b"\x05"
RESULT: Final = b"\x06"
RESULT_END: Final = b"\x07"
REASONING: Final = b"\x08"
NAME: Final = b"\x0b"
TOOLS: Final = b"\x0e"
DOCUMENTS: Final = b"\x0f"
ITEM: Final = b"\x10"
OTHER: Final = b"\x11"
KEY: Final = b"\x12"
FIELD: Final = b"\x13"
TASK: Final = b"\x14"

QUOTE: Final = ord('"')
BRACKET: Final = ord("[")
BRACE: Final = ord("{")

_respelled = re.compile(rb"\\[u/]").search
_LONG_BODY: Final = 131_072
"""Bytes; from here on looking strings up costs less than searching all of them."""
_LONG_STRING: Final = 512
"""Bytes; from here on looking it up costs less than searching it."""
LARGEST_VALUE: Final = 1 << 20
"""Bytes; a larger value is not decoded."""
_MOST_AGAIN: Final = 1 << 18
"""Bytes; a larger value of the wrong shape is not decoded a second time."""
_SCAN_WITH_NUMPY: Final = 32_768
"""Bytes; from here on numpy is faster than a regular expression."""
_U: Final = int.from_bytes(b"\\u", "little")
_SLASH: Final = int.from_bytes(b"\\/", "little")

_decode_any = msgspec.json.Decoder().decode
_decode_string = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder(order="sorted").encode


def is_plain(body: bytes | msgspec.Raw) -> bool:
    """Whether every string in some JSON is known to be canonical.

    When it is very long that is not worth knowing: its strings are looked up one by one
    (``string``), since most of them have been seen before.
    """
    return len(memoryview(body)) < _LONG_BODY and not _may_be_respelled(body)


def string(raw: msgspec.Raw, plain: bool) -> bytes | msgspec.Raw:
    """A JSON string's canonical form; plain says that it is known to be in it."""
    if plain:
        return raw
    if len(memoryview(raw)) < _LONG_STRING:
        return raw if _respelled(raw) is None else _encode(_decode_string(raw))
    return _strings(raw) or raw


def _respell(raw: msgspec.Raw) -> bytes:
    """A JSON string's canonical form, or nothing when it is in it."""
    return _encode(_decode_string(raw)) if _may_be_respelled(raw) else b""


def _may_be_respelled(raw: bytes | msgspec.Raw) -> bool:
    size = len(memoryview(raw))
    if size < _SCAN_WITH_NUMPY:
        return _respelled(raw) is not None
    # Two bytes at a time, first from even, then from odd offsets: faster than a search.
    for start in (0, 1):
        pairs = np.frombuffer(raw, "<u2", (size - start) >> 1, start)
        if (pairs == _U).any() or (pairs == _SLASH).any():
            return True
    return False


def value(raw: msgspec.Raw, plain: bool) -> bytes | msgspec.Raw:
    """Any JSON value's canonical form: keys sorted, no spaces, fewest escapes."""
    if memoryview(raw)[0] == QUOTE:
        return string(raw, plain)
    return compact(raw)


def compact(raw: msgspec.Raw) -> bytes:
    """The canonical form of a JSON value that is not a string; of a very large one, its bytes.

    Values take up to twenty times the memory of their bytes.
    """
    if len(memoryview(raw)) > LARGEST_VALUE:
        return bytes(raw)
    try:
        return dump(_decode_any(raw))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # Numbers no machine type holds, or bytes that are not UTF-8: for the engine to decide.
        return bytes(raw)


def members_once(raw: msgspec.Raw, decode: Callable[[bytes], T]) -> T | None:
    """A value decoded from its canonical form, which has the last of the members of one name; None
    when it has another shape all the same, or is too large to be worth the attempt."""
    if len(memoryview(raw)) > _MOST_AGAIN:
        return None
    try:
        return decode(compact(raw))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def dump(tree: Any) -> bytes:
    """A decoded JSON value in canonical form."""
    try:
        return _encode(tree)
    except OverflowError:  # an integer of more than 64 bits
        return json.dumps(tree, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def crowded(count: int, size: int) -> bool:
    """Whether a list of so many elements in so many bytes is none that a client has use for.

    Elements cost time each, bytes next to none. Such a list is taken as the bytes it is.
    """
    return count > _MANY and size < count * _SMALL


_MANY: Final = 512
_SMALL: Final = 64


def is_given(raw: msgspec.Raw) -> bool:
    """Whether a field is there and not null: the two mean the same."""
    return raw is not ABSENT and raw != NULL


def number(raw: msgspec.Raw) -> int:
    """A count of tokens; 0 when it is none that makes sense."""
    digits = bytes(raw)
    return int(digits) if digits.isdigit() and len(digits) < 10 else 0


def words(raw: msgspec.Raw) -> str:
    """A JSON string's text; empty for anything else."""
    if raw is ABSENT or memoryview(raw)[0] != QUOTE:
        return ""
    try:
        return _decode_string(raw)
    except UnicodeDecodeError:
        return ""


_TRUE: Final = frozenset((b"true", b"1", b'"true"', b'"1"', b'"t"', b'"yes"', b'"y"', b'"on"'))


def truth(raw: msgspec.Raw) -> bool:
    """A flag as lenient engines read it (pydantic's lax mode)."""
    return raw is not ABSENT and bytes(raw).lower() in _TRUE


class Memo:
    """Remembers results by the bytes they were made from, up to a number of bytes.

    Two generations: what was used since the last turn, and what was not. When the first is full the
    second is dropped, which keeps what is in use without an order to maintain.
    """

    __slots__ = ("_limit", "_make", "_new", "_old", "_size")

    def __init__(self, make: Callable[[msgspec.Raw], bytes], limit: int) -> None:
        self._make = make
        self._limit = limit // 2
        self._new: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}
        self._size = 0

    def __call__(self, raw: msgspec.Raw) -> bytes:
        key = xxhash.xxh3_128_digest(raw, _MEMO_SEED)
        found = self._new.get(key)
        if found is None:
            found = self._old.get(key)
            if found is None:
                found = self._make(raw)
            if len(found) > self._limit // 8:
                return found
            self._size += len(found) + _ENTRY_BYTES
            if self._size > self._limit:
                self._old = self._new
                self._new = {}
                self._size = len(found) + _ENTRY_BYTES
            self._new[key] = found
        return found


_ENTRY_BYTES: Final = 160
_MEMO_SEED: Final = secrets.randbits(64)  # nobody can make two inputs that look the same

_strings: Final = Memo(_respell, 64 << 20)
