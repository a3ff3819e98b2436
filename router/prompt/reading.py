"""Body bytes → a typed body, and every way that can fail → PromptError.

The engines read bodies with Python's ``json``, which takes more than JSON: NaN, a byte order mark,
UTF-16, half a surrogate pair, a key given twice with the wrong type at first. What it takes is not
refused here: such a body is rewritten as plain JSON and read again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import msgspec

from router.prompt.canonical import ABSENT, compact, is_given, words
from router.prompt.prompt import Prompt, PromptError
from router.types import TemplateTraits

Body = TypeVar("Body")

NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not JSON, and for JSON of another shape."""

_where = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)


class Head(msgspec.Struct, gc=False):
    """The fields all API families read the same way."""

    model: str | None = None
    stream: msgspec.Raw = ABSENT
    user: msgspec.Raw = ABSENT
    prompt_cache_key: msgspec.Raw = ABSENT
    session_id: msgspec.Raw = ABSENT
    cache_salt: msgspec.Raw = ABSENT


Models = Mapping[str, TemplateTraits]
"""What is known of each model, by the name that requests give it."""


def parse(body: bytes, build: Callable[[bytes, Models], Prompt], models: Models) -> Prompt:
    """``build(body, models)``, or of the body rewritten as JSON.

    Raises:
        PromptError: the body is not a JSON object, or a field that must be read has the wrong type.
    """
    try:
        return build(body, models)
    except NOT_JSON as error:
        again = rewritten(body, error)
    try:
        prompt = build(again, models)
    except msgspec.ValidationError as error:
        raise wrong_type(error) from None
    except NOT_JSON as error:
        raise PromptError(f"The request body is not valid JSON: {error}") from None
    prompt.usage_offset = -1  # an offset into the rewritten body
    return prompt


def rewritten(body: bytes, error: Exception) -> bytes:
    """A body that is JSON only to Python, as JSON: NaN as null, half surrogate pairs as ``?``."""
    try:
        tree = json.loads(body, parse_constant=lambda _: None)
    except RecursionError:
        raise PromptError("The request body is nested too deeply.") from None
    except ValueError:
        raise PromptError(f"The request body is not valid JSON: {error}") from None
    return json.dumps(tree, ensure_ascii=False).encode("utf-8", "replace")


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
