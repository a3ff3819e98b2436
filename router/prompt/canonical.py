"""What the readers of all APIs share: a body's fields, their one spelling, and the chain of it.

A string's canonical form is its JSON spelling with the fewest escapes, quotes included. Nearly
every client already sends that, so that nothing has to be decoded: the body's bytes from quote to
quote are the canonical bytes. Only ``\\u`` and ``\\/`` can spell a character in a second way.

Around the values stand tags: single control bytes other than JSON's whitespace. No JSON text can
hold one, so that a value never runs into the next and two structures never give the same bytes.

The engines read bodies with Python's ``json``, which takes more than JSON (``lenient``), and of a
key given twice the last, whatever the first was. What it takes is not refused here. The choice of
how to read is made once for a body, so that no body costs much more than others of its size.
"""

from __future__ import annotations

import json
import re
import secrets
from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import xxhash

from router.memory import RecentMemory
from router.prompt.lenient import NOT_JSON, readable, utf8
from router.prompt.prompt import Prompt, PromptError
from router.prompt.spans import SPANS
from router.types import Chain, TemplateTraits

Add = Callable[["bytes | msgspec.Raw"], object]
"""Appends a piece. The pieces are joined to the canonical bytes."""

T = TypeVar("T")

ABSENT: Final = msgspec.Raw(b"")
"""Stands for a field that the body does not have. Compare with ``is``."""
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
"""Bytes of a body from which on looking strings up costs less than searching them all."""
_LONG_STRING: Final = 512
"""Bytes of a string from which on looking it up costs less than searching it."""
LARGEST_VALUE: Final = 1 << 20
"""The most bytes of a value that is decoded."""
_MOST_AGAIN: Final = 1 << 18
"""The most bytes of a value that is decoded a second time, after a wrong shape."""
_SCAN_WITH_NUMPY: Final = 32_768
"""Bytes from which on numpy is faster than a regular expression."""
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
    return strings(raw) or raw


def _respell(raw: msgspec.Raw) -> bytes:
    """The canonical form of a JSON string; empty if the string is canonical already."""
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
    """The canonical form of any JSON value: keys sorted, no spaces, fewest escapes."""
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
    """Writes a decoded JSON value in canonical form."""
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
    """Whether a field is there and not null: null means the same as no field."""
    return raw is not ABSENT and raw != NULL


MOST_TOKENS: Final = 999_999_999
"""What a larger count is taken for. Engines take it, and answer up to their model's length."""
_DIGITS: Final = 9
"""Of that number: what is longer is not worth reading."""


def number(raw: msgspec.Raw) -> int:
    """A token count from the body; 0 if the value makes no sense as one."""
    digits = b"" if raw is ABSENT else bytes(raw)
    if digits.isdigit():
        return int(digits) if len(digits) <= _DIGITS else MOST_TOKENS
    return _loose_number(digits) if digits and digits != b"null" else 0


def _loose_number(text: bytes) -> int:
    """What is written as "12" or 12.0: engines take it for 12 (pydantic's lax mode)."""
    try:
        value = float(text.strip(b'"'))
    except ValueError:
        return 0
    return min(int(value), MOST_TOKENS) if value.is_integer() and value > 0 else 0


def words(raw: msgspec.Raw) -> str:
    """The text of a JSON string; empty for any other value."""
    if raw is ABSENT or memoryview(raw)[0] != QUOTE:
        return ""
    try:
        return _decode_string(raw)
    except UnicodeDecodeError:
        return ""


_TRUE: Final = frozenset((b"true", b"1", b'"true"', b'"1"', b'"t"', b'"yes"', b'"y"', b'"on"'))


def truth(raw: msgspec.Raw) -> bool:
    """A flag, read as leniently as engines do (pydantic's lax mode)."""
    return raw is not ABSENT and bytes(raw).lower() in _TRUE


class Memo(RecentMemory[bytes, bytes]):
    """Remembers the results of `make`, by a hash of their input."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[msgspec.Raw], bytes], limit: int) -> None:
        """`limit` is in bytes. A result larger than a 16th of it is not remembered."""
        super().__init__(limit, _entry_bytes, largest=limit // 16)
        self._make = make

    def __call__(self, raw: msgspec.Raw) -> bytes:
        key = xxhash.xxh3_128_digest(raw, _MEMO_SEED)
        found = self._new.get(key)
        if found is None:
            found = self._revive(key)
            if found is None:
                found = self._make(raw)
                self.put(key, found)
        return found


def _entry_bytes(_: bytes, made: bytes) -> int:
    return len(made) + _ENTRY_BYTES


_ENTRY_BYTES: Final = 160
_MEMO_SEED: Final = secrets.randbits(64)  # nobody can make two inputs that look the same

strings: Final = Memo(_respell, 64 << 20)
"""Remembers the canonical form of strings that JSON can spell in several ways."""


# Body bytes -> a typed body, and every way that can fail -> PromptError

_where = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)

LONGEST_MODEL: Final = 256
"""Bytes of a model's name. Names are remembered and logged, and a client chooses them."""

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode_members = msgspec.json.Encoder().encode


class Transfer(msgspec.Struct, gc=False):
    """The fields that ``without_transfer`` takes out, and those they may be in: a body's top level,
    or one of the objects within it."""

    kv_transfer_params: msgspec.Raw = ABSENT
    ec_transfer_params: msgspec.Raw = ABSENT
    bootstrap_host: msgspec.Raw = ABSENT
    bootstrap_port: msgspec.Raw = ABSENT
    bootstrap_room: msgspec.Raw = ABSENT
    disaggregated_params: msgspec.Raw = ABSENT
    vllm_xargs: msgspec.Raw = ABSENT
    sampling_params: msgspec.Raw = ABSENT
    extra_args: msgspec.Raw = ABSENT

    @property
    def transfer(self) -> bool:
        """Whether one of the transfer fields is in the body, or may be."""
        return not (
            self.kv_transfer_params is ABSENT
            and self.ec_transfer_params is ABSENT
            and self.vllm_xargs is ABSENT
            and self.sampling_params is ABSENT
            and self.extra_args is ABSENT
            and self.bootstrap_host is ABSENT
            and self.bootstrap_port is ABSENT
            and self.bootstrap_room is ABSENT
            and self.disaggregated_params is ABSENT
        )


class Head(Transfer, gc=False):
    """The fields that all API families read in the same way."""

    model: str | None = None
    stream: msgspec.Raw = ABSENT
    user: msgspec.Raw = ABSENT
    prompt_cache_key: msgspec.Raw = ABSENT
    session_id: msgspec.Raw = ABSENT
    cache_salt: msgspec.Raw = ABSENT
    priority: msgspec.Raw = ABSENT
    service_tier: msgspec.Raw = ABSENT
    nvext: msgspec.Raw = ABSENT

    def __post_init__(self) -> None:
        if self.model is not None and len(self.model) * 4 > LONGEST_MODEL:
            check_model(self.model)

    @property
    def own_salt(self) -> bytes:
        """The client's own salt as canonical JSON; empty for none."""
        salt = self.cache_salt
        return b"" if salt is ABSENT or salt == NULL else compact(salt)


def check_model(name: str) -> None:
    """Raises PromptError for a model's name that is too long to be one."""
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST_MODEL:
        raise PromptError(f"'model' is longer than {LONGEST_MODEL} bytes.", "model")


Models = Mapping[str, TemplateTraits]
"""The facts about each model, by the name that requests use."""


def parse(body: bytes, build: Callable[[bytes, Models], Prompt], models: Models) -> Prompt:
    """``build(body, models)``, or of the body as msgspec can read it.

    Raises:
        PromptError: the body is not a JSON object, or a field that must be read has the wrong type.
    """
    try:
        return build(body, models)
    except msgspec.ValidationError:
        return _parse_again(body, build, models)
    except NOT_JSON:
        return _parse_again(_readable(body), build, models)


def _readable(body: bytes) -> bytes:
    try:
        return readable(utf8(body))
    except UnicodeDecodeError as error:
        raise PromptError(f"The request body is not valid JSON: {error}") from None


def _parse_again(body: bytes, build: Callable[[bytes, Models], Prompt], models: Models) -> Prompt:
    """Parses a body again with only the last of members of one name. Raises PromptError."""
    try:
        prompt = build(_members_once(body), models)
    except msgspec.ValidationError as error:
        raise wrong_type(error) from None
    except NOT_JSON as error:
        raise PromptError(f"The request body is not valid JSON: {error}") from None
    prompt.usage_offset = -1  # an offset into another body
    return prompt


def _members_once(body: bytes) -> bytes:
    """The body with only the last of members that have the same name."""
    return _encode_members(_decode_members(body))


def wrong_type(error: msgspec.ValidationError) -> PromptError:
    """Words a msgspec error as the API does."""
    found = _where.match(str(error))
    what, path = (found["what"], found["path"]) if found else (str(error), None)
    missing = re.search(r"missing required field `(.+)`", what)
    if missing:
        name = f"{path}.{missing[1]}" if path else missing[1]
        return PromptError(f"{name!r} is required.", name)
    what = what[:1].lower() + what[1:].replace("`", "")
    if not path:
        return PromptError(f"The request body must be a JSON object: {what}.")
    return PromptError(f"{path!r} has the wrong type: {what}.", path)


def session(head: Head) -> str:
    """The name of the session that this request belongs to."""
    for raw in (head.prompt_cache_key, head.session_id, head.user):
        if raw is not ABSENT and (name := words(raw)):
            return name
    return ""


def cache_of(head: Head, traits: TemplateTraits) -> str:
    """The name of the cache that the prompt's blocks are in."""
    return traits.cache or head.model or ""


def arguments(*given: tuple[bytes, msgspec.Raw]) -> list[tuple[bytes, bytes]]:
    """The named fields that the body has, in canonical form."""
    return [(name, compact(raw)) for name, raw in given if is_given(raw)]


def usage_offset(body: bytes, stream: bool, stream_options: msgspec.Raw) -> int:
    """Where to ask for usage in the stream; -1 when the client asked for something itself.

    The offset is right behind the opening brace. A ``null`` the client sent counts as asked: it
    comes later in the body, and of two keys the last one wins.
    """
    if not stream or stream_options is not ABSENT:
        return -1
    return body.find(b"{") + 1


# Canonical bytes -> the chain of block hashes that names every prefix of them

# Made once: a slice object costs more than the index it saves, and all chains share these.
_SLICES: Final = tuple(slice(start, end) for start, end in pairwise(SPANS))


def chain(text: bytes, seed: int) -> Chain:
    """Hash each full block (XXH3, 64 bits), each with the hash before it as its seed."""
    xxh3 = xxhash.xxh3_64_intdigest
    h = seed
    return array(
        "Q", [h := xxh3(text[s], h) for s in _SLICES[: bisect_right(SPANS, len(text)) - 1]]
    )


def written(given: list[tuple[bytes, bytes]], pairs: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """``name=value`` of what goes into a seed, and of template arguments, for who compares prompts.
    A hash stands for a long value: they are compared, not read."""
    return (*(name + b"=" + _short(canonical) for name, canonical in given), *pairs)


def _short(canonical: bytes) -> bytes:
    if len(canonical) <= _LONGEST_WRITTEN:
        return canonical
    return xxhash.xxh3_128_hexdigest(canonical, _MEMO_SEED).encode()


_LONGEST_WRITTEN: Final = 64


def seed(api: str, model: str, arguments: list[tuple[bytes, bytes]]) -> int:
    """What no two prompts of other heads share: API, model, and the template arguments given."""
    if not arguments:
        return plain_seed(api, model)
    pieces = [api.encode(), b"\x00", dump(model)]
    for name, canonical in arguments:
        pieces += (b"\x00", name, b"\x01", canonical)
    made: int = xxhash.xxh3_64_intdigest(b"".join(pieces))
    return made


@lru_cache(maxsize=4096)
def plain_seed(api: str, model: str) -> int:
    """The seed of a prompt whose head has only a model."""
    made: int = xxhash.xxh3_64_intdigest(b"\x00".join((api.encode(), dump(model))))
    return made
