"""Bodies that are JSON only to Python's ``json``, as the engines read them → JSON for msgspec.

Python takes NaN, a byte order mark, UTF-16, half a surrogate pair, and deeper nesting.
The result serves to read a body and is never sent. It has the length of the UTF-8 text, so that
what is found in it lies at the same place there. No step builds the body's values: the memory is a
few times the body, whatever it holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
import numpy as np

NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not JSON, and for JSON of another shape."""
_T = TypeVar("_T")
_LEVELS: Final = 100
"""Arrays and objects within one another that are kept; no field that is read lies deeper."""
_CHUNK: Final = 1 << 18
_BOM: Final = b"\xef\xbb\xbf"
# Each begins with its literal, which is searched for much faster than any set of bytes.
_NAN = re.compile(rb"NaN(?<=[\[:,\s]NaN)(?=[\],}\s])")
_INFINITY = re.compile(rb"Infinity(?<=[\[:,\s-]Infinity)(?=[\],}\s])")
_ENCODED_HALF = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
_HALF = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)
_skip = msgspec.json.Decoder(msgspec.Raw).decode


def decoded(decode: Callable[[bytes], _T], body: bytes) -> _T | None:
    """What a decoder of msgspec's reads in a body, also in one that only Python takes for JSON;
    None where it is none, or of another shape."""
    try:
        return decode(body)
    except NOT_JSON:
        pass
    try:
        return decode(readable(utf8(body)))
    except NOT_JSON:
        return None


def encoding(body: bytes) -> str:
    """What Python's ``json`` takes the body to be encoded in, byte order marks left in the text."""
    found = json.detect_encoding(body)
    if found == "utf-8-sig":
        return "utf-8"
    if found in ("utf-16", "utf-32"):
        return found + ("-le" if body[0] == 0xFF else "-be")
    return found


def utf8(body: bytes) -> bytes:
    """Decode the body to UTF-8. Raises UnicodeDecodeError."""
    name = encoding(body)
    return (
        body
        if name == "utf-8"
        else body.decode(name, "surrogatepass").encode("utf-8", "surrogatepass")
    )


def readable(text: bytes) -> bytes:
    """JSON text in UTF-8 as msgspec reads it, of the same length.

    A number takes the place of NaN and the infinities, U+FFFD or ``?`` that of half a surrogate
    pair, spaces that of a byte order mark and of what is nested very deeply. Text that looks like
    one of these inside a string changes too, which names the same prompt differently and no more.
    """
    if text.startswith(_BOM):
        text = b"   " + text[3:]
    text = _NAN.sub(b"111", text)
    text = _INFINITY.sub(b"11111111", text)
    text = _HALF.sub(rb"\\ufffd", text)
    text = _ENCODED_HALF.sub(b"???", text)
    try:
        _skip(text)
    except RecursionError:
        return _shallow(text)
    except msgspec.DecodeError:
        pass  # for the reader to tell
    return text


def _shallow(text: bytes) -> bytes:
    """Replaces everything deeper than ``_LEVELS`` with spaces."""
    # Without escapes every quote opens or closes a string. Escaped backslashes go first, as a
    # quote behind one is none that is escaped.
    bare = np.frombuffer(text.replace(b"\\\\", b"__").replace(b'\\"', b"__"), np.uint8)
    out = np.frombuffer(text, np.uint8).copy()
    inside = depth = 0
    for start in range(0, len(bare), _CHUNK):
        part = bare[start : start + _CHUNK]
        quotes = np.cumsum(part == ord('"'), dtype=np.uint8) + np.uint8(inside) & 1
        outside = quotes == 0
        opened = outside & ((part == ord("[")) | (part == ord("{")))
        closed = outside & ((part == ord("]")) | (part == ord("}")))
        after = np.cumsum(opened.astype(np.int8) - closed.astype(np.int8), dtype=np.int64) + depth
        # Keep the brackets around what is replaced.
        out[start : start + _CHUNK][after - opened > _LEVELS] = ord(" ")
        inside, depth = int(quotes[-1]), int(after[-1])
    return out.tobytes()
