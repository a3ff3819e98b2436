"""Fields that tell an engine where to fetch a request's KV blocks, and their removal.

They are for routers that split prefill and decoding. From a client they make an engine connect to
where the client says, read blocks that are not its own, or fail. vLLM hands its KV and encoder
connectors what stands under these names in the body, in ``vllm_xargs``, and in the ``extra_args``
of ``sampling_params``; SGLang and TensorRT-LLM have the others.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from router.prompt.canonical import ABSENT, BRACE, Transfer
from router.prompt.lenient import encoding, readable, utf8
from router.prompt.prompt import PromptError

_MOST: Final = 16
"""Times that such fields may be given in one body: each removal reads it again."""
_WHITESPACE: Final = b" \t\r\n"


_WITHIN: Final = ("vllm_xargs", "sampling_params", "extra_args")
_NAMES: Final = tuple(name for name in Transfer.__struct_fields__ if name not in _WITHIN)
_decode = msgspec.json.Decoder(Transfer).decode


def without_transfer(body: bytes) -> bytes:
    """The body less these fields, all other bytes as they came; itself where it has none.

    Raises PromptError when they are given too often.
    """
    try:
        text = utf8(body)
    except UnicodeDecodeError:
        return body  # no engine can read it
    shadow = readable(text)
    cut = False
    for _ in range(_MOST):
        found = _find(shadow)
        if found is None:
            if not cut:
                return body
            name = encoding(body)
            return (
                text
                if name == "utf-8"
                else text.decode("utf-8", "surrogatepass").encode(name, "surrogatepass")
            )
        start, end = found
        text = text[:start] + text[end:]
        shadow = shadow[:start] + shadow[end:]
        cut = True
    raise PromptError("The fields for KV transfer are given too often.")


def _find(text: bytes) -> tuple[int, int] | None:
    """The place of one of the members in the body, its comma included."""
    todo: list[bytes | msgspec.Raw] = [text]
    while todo:
        try:
            fields = _decode(todo.pop())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue  # not an object, or for no engine to read
        for name in _NAMES:
            raw = getattr(fields, name)
            if raw is not ABSENT:
                return _member(text, raw)
        for name in _WITHIN:
            raw = getattr(fields, name)
            if raw is not ABSENT and memoryview(raw)[0] == BRACE:
                todo.append(raw)
    return None


def _member(text: bytes, value: msgspec.Raw) -> tuple[int, int]:
    """From the name of the member with this value, which is a part of text, to its end, one comma
    included."""
    # A raw value is a view into what it was decoded from.
    start = _address(value) - _address(text)
    end = _skipped(text, start + len(memoryview(value)))
    start = _skipped_back(text, start) - 1  # the colon
    start = text.rindex(b'"', 0, _skipped_back(text, start) - 1)
    if text[end] == ord(","):
        return start, end + 1
    before = _skipped_back(text, start) - 1
    return (before if text[before] == ord(",") else start), end


def _address(buffer: bytes | msgspec.Raw) -> int:
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def _skipped(text: bytes, at: int) -> int:
    while text[at] in _WHITESPACE:
        at += 1
    return at


def _skipped_back(text: bytes, at: int) -> int:
    while text[at - 1] in _WHITESPACE:
        at -= 1
    return at
