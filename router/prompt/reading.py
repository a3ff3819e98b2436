"""Body bytes → a typed body, and every way that can fail → PromptError.

The engines read bodies with Python's ``json``, which takes more than JSON (``lenient``), and of a
key given twice the last, whatever the first was. What it takes is not refused here. The choice of
how to read is made once for a body, so that no body costs much more than others of its size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import msgspec

from router.prompt.canonical import ABSENT, compact, is_given, words
from router.prompt.lenient import readable, utf8
from router.prompt.prompt import Prompt, PromptError
from router.prompt.transfer import Transfer
from router.types import TemplateTraits

Body = TypeVar("Body")

NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not JSON, and for JSON of another shape."""

_where = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)


LONGEST_MODEL: Final = 256
"""Bytes of a model's name. Names are remembered and logged, and a client chooses them."""

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class Head(Transfer, gc=False):
    """The fields all API families read the same way."""

    model: str | None = None
    stream: msgspec.Raw = ABSENT
    user: msgspec.Raw = ABSENT
    prompt_cache_key: msgspec.Raw = ABSENT
    session_id: msgspec.Raw = ABSENT
    cache_salt: msgspec.Raw = ABSENT

    def __post_init__(self) -> None:
        if self.model is not None and len(self.model) * 4 > LONGEST_MODEL:
            check_model(self.model)


def check_model(name: str) -> None:
    """Raises PromptError for a model's name that is too long to be one."""
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST_MODEL:
        raise PromptError(f"'model' is longer than {LONGEST_MODEL} bytes.", "model")


Models = Mapping[str, TemplateTraits]
"""What is known of each model, by the name that requests give it."""


def parse(body: bytes, build: Callable[[bytes, Models], Prompt], models: Models) -> Prompt:
    """``build(body, models)``, or of the body as msgspec can read it.

    Raises:
        PromptError: the body is not a JSON object, or a field that must be read has the wrong type.
    """
    try:
        return build(body, models)
    except msgspec.ValidationError:
        again = body
    except NOT_JSON:
        try:
            again = readable(utf8(body))
        except UnicodeDecodeError as error:
            raise PromptError(f"The request body is not valid JSON: {error}") from None
    try:
        prompt = build(_members_once(again), models)
    except msgspec.ValidationError as error:
        raise wrong_type(error) from None
    except NOT_JSON as error:
        raise PromptError(f"The request body is not valid JSON: {error}") from None
    prompt.usage_offset = -1  # an offset into another body
    return prompt


def _members_once(body: bytes) -> bytes:
    """The body with the last of the members that have the same name."""
    return _encode(_decode_members(body))


def wrong_type(error: msgspec.ValidationError) -> PromptError:
    """msgspec's message in the API's words."""
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
    """What names the session this request belongs to."""
    for raw in (head.prompt_cache_key, head.session_id, head.user):
        if raw is not ABSENT:
            name = words(raw)
            if name:
                return name
    return ""


def cache_of(head: Head, traits: TemplateTraits) -> str:
    """What names the cache that the prompt's blocks are in."""
    return traits.cache or head.model or ""


def arguments(*given: tuple[bytes, msgspec.Raw]) -> list[tuple[bytes, bytes]]:
    """Those of the named fields that are there, in canonical form."""
    return [(name, compact(raw)) for name, raw in given if is_given(raw)]


def usage_offset(body: bytes, stream: bool, stream_options: msgspec.Raw) -> int:
    """Where to ask for usage in the stream; -1 when the client asked for something itself.

    The offset is right behind the opening brace. A ``null`` the client sent counts as asked: it
    comes later in the body, and of two keys the last one wins.
    """
    if not stream or stream_options is not ABSENT:
        return -1
    return body.find(b"{") + 1
