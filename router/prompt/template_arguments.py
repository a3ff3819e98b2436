"""The template arguments of a body, and what each does to the prompt where that is known."""

from __future__ import annotations

from typing import Final

import msgspec

from router.prompt.canonical import compact, is_given
from router.types import Reasoning, TemplateTraits

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class TemplateArguments(msgspec.Struct, gc=False, frozen=True):
    """What the template arguments of one body do to its prompt."""

    reasoning: Reasoning | None = None
    """What happens to earlier reasoning; None if the same as without the arguments."""
    heads: tuple[tuple[bytes, bytes], ...] = ()
    """What the prompt's head becomes with them, for the seed."""
    pairs: tuple[bytes, ...] = ()
    """All of them, as ``name=value``."""
    unknown: tuple[bytes, ...] = ()
    """Those of which it is not known what they do. They are taken to change nothing: what engines
    share and a router does not is lost with each request, the reverse once."""


def template_arguments(
    traits: TemplateTraits, *given: tuple[bytes, msgspec.Raw], kwargs: msgspec.Raw
) -> TemplateArguments:
    """What these arguments do.

    `given` has those with a field of their own, `kwargs` is chat_template_kwargs.
    """
    pairs = [_pair(name, raw) for name, raw in given if is_given(raw)]
    if is_given(kwargs):
        fields = _fields(kwargs)
        if fields is None:
            pairs.append(_pair(KWARGS, kwargs))
        else:
            pairs += [_pair(KWARGS + b":" + name.encode(), fields[name]) for name in sorted(fields)]
    reasoning: Reasoning | None = None
    heads: list[tuple[bytes, bytes]] = []
    unknown: list[bytes] = []
    for pair in pairs:
        effect = traits.arguments.get(pair)
        if effect is None:
            unknown.append(pair)
            continue
        if effect.head:
            heads.append((b"head", effect.head))
        if effect.reasoning is not None:
            reasoning = effect.reasoning
    return TemplateArguments(reasoning, tuple(heads), tuple(pairs), tuple(unknown))


def _pair(name: bytes, raw: msgspec.Raw) -> bytes:
    view = memoryview(raw)
    return name + b"=" + (compact(raw) if len(view) <= _LONGEST else bytes(view[:_LONGEST]))


def _fields(kwargs: msgspec.Raw) -> dict[str, msgspec.Raw] | None:
    """The arguments in an object; None for another value, and for one too large to be worth it."""
    if len(memoryview(kwargs)) > _LONGEST:
        return None
    try:
        return _decode_object(kwargs)
    except (msgspec.ValidationError, UnicodeDecodeError):
        return None


_LONGEST: Final = 4096
"""The most bytes of arguments that are read, far more than arguments that are tried have."""
KWARGS: Final = b"kwargs"
NO_ARGUMENTS: Final = TemplateArguments()
