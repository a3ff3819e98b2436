"""/v1/responses: instructions and the input items, with tools where the template has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from router.prompt.canonical import (
    ABSENT,
    BRACKET,
    CALL,
    ITEM,
    KEY,
    MESSAGE,
    NULL,
    QUOTE,
    REASONING,
    RESULT,
    Add,
    dump,
    is_given,
    is_plain,
    number,
    string,
    truth,
    value,
)
from router.prompt.chain import chain, seed
from router.prompt.content import Fields, tools, write_arguments, write_content, write_system
from router.prompt.layout import DEVELOPER, SYSTEM, USER, Layout
from router.prompt.prompt import Api, Prompt, PromptError
from router.prompt.reading import Head, Models, arguments, parse, session
from router.prompt.template_arguments import NO_ARGUMENTS, template_arguments
from router.types import DEFAULT_TRAITS, NO_TRAITS, TemplateTraits


class Body(Head, gc=False, kw_only=True):
    """A responses body."""

    input: msgspec.Raw
    instructions: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    max_output_tokens: msgspec.Raw = ABSENT
    previous_response_id: msgspec.Raw = ABSENT
    conversation: msgspec.Raw = ABSENT
    previous_input_messages: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    reasoning: msgspec.Raw = ABSENT
    chat_template_kwargs: msgspec.Raw = ABSENT
    mm_processor_kwargs: msgspec.Raw = ABSENT
    media_io_kwargs: msgspec.Raw = ABSENT


class Reasoning(msgspec.Struct, gc=False):
    """The part of ``reasoning`` that reaches the template."""

    effort: msgspec.Raw = ABSENT


_decode = msgspec.json.Decoder(Body).decode
_decode_reasoning = msgspec.json.Decoder(Reasoning).decode
_decode_items = msgspec.json.Decoder(list[Fields]).decode
_decode_values = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_item = msgspec.json.Decoder(Fields).decode

_UNSEEN: Final = frozenset(("id", "status", "type", "encrypted_content"))


def parse_responses(body: bytes, models: Models = NO_TRAITS) -> Prompt:
    """The prompt of a responses body. Raises PromptError."""
    return parse(body, _build, models)


def _build(body: bytes, models: Models) -> Prompt:
    head = _decode(body)
    plain = is_plain(body)
    traits = models.get(head.model or "", DEFAULT_TRAITS)
    layout = Layout(traits)
    add = layout.add
    if head.tools is not ABSENT:
        layout.tools(tools(head.tools))
    if is_given(head.instructions) and head.instructions != b'""':
        add(MESSAGE)
        add(SYSTEM)
        write_system(add, head.instructions, plain)
    inline = False
    first = memoryview(head.input)[0]
    if first == QUOTE:
        layout.led()
        add(MESSAGE)
        add(USER)
        write_content(add, head.input, plain)
    elif first == BRACKET:
        inline = _write_items(layout, traits, _items(head.input), plain)
    else:
        raise PromptError("'input' must be a string or an array of items.", "input")
    given = NO_ARGUMENTS
    if head.reasoning is not ABSENT or head.chat_template_kwargs is not ABSENT:
        effort = (b"reasoning_effort", _effort(head.reasoning))
        given = template_arguments(traits, effort, kwargs=head.chat_template_kwargs)
    text = layout.text(given.reasoning or traits.reasoning)
    return Prompt(
        head.model or "",
        chain(text, _seed(head, traits.cache or head.model or "", given.heads)),
        len(text),
        truth(head.stream),
        session(head),
        number(head.max_output_tokens),
        -1,  # its last event has the usage anyway
        (),
        layout.doubts(given.unknown, inline),
    )


def _effort(reasoning: msgspec.Raw) -> msgspec.Raw:
    if not is_given(reasoning):
        return ABSENT
    try:
        return _decode_reasoning(reasoning).effort
    except msgspec.ValidationError:
        return reasoning


def _seed(head: Body, cache: str, heads: tuple[tuple[bytes, bytes], ...]) -> int:
    return seed(
        Api.RESPONSES,
        cache,
        [
            *arguments(
                (b"salt", head.cache_salt),
                (b"previous", head.previous_response_id),
                (b"conversation", head.conversation),
                (b"messages", head.previous_input_messages),
                (b"prompt", head.prompt),
                (b"media", head.mm_processor_kwargs),
                (b"io", head.media_io_kwargs),
            ),
            *heads,
        ],
    )


def _items(raw: msgspec.Raw) -> Sequence[Fields | msgspec.Raw]:
    """The input items; those that are no objects as they stand."""
    try:
        return _decode_items(raw)
    except msgspec.ValidationError:
        return [_item(each) for each in _decode_values(raw)]


def _item(raw: msgspec.Raw) -> Fields | msgspec.Raw:
    try:
        return _decode_item(raw)
    except msgspec.ValidationError:
        return raw


def _write_items(
    layout: Layout, traits: TemplateTraits, items: Sequence[Fields | msgspec.Raw], plain: bool
) -> bool:
    """Put the items in. Returns whether there are system messages that do not stand at the
    front."""
    leading, inline = True, False
    for item in items:
        if isinstance(item, msgspec.Raw):
            layout.add(ITEM)
            layout.add(value(item, plain))
            continue
        role = _role(item, plain)
        system = role in (SYSTEM, DEVELOPER)
        if leading and not system:
            leading = False
            layout.led()
        add = layout.add
        if system and not leading:
            inline = True
            add = layout.inline(traits.system if role == SYSTEM else traits.developer)
        _write_item(layout, add, item, role, plain)
    if leading:
        layout.led()
    return inline


def _role(item: Fields, plain: bool) -> bytes:
    """The role of a message; empty for any other item."""
    kind = bytes(string(item.get("type", NULL), plain))
    if kind == b'"message"' or (kind == b"null" and "role" in item):
        return bytes(value(item.get("role", NULL), plain))
    return b""


def _write_item(layout: Layout, add: Add, item: Fields, role: bytes, plain: bool) -> None:
    if role:
        add(MESSAGE)
        add(role)
        content = item.get("content", NULL)
        if role == SYSTEM:
            write_system(add, content, plain)
        else:
            write_content(add, content, plain)
        return
    kind = bytes(string(item.get("type", NULL), plain))
    if kind == b'"function_call"' or kind == b'"custom_tool_call"':
        add(CALL)
        add(kind)
        for name in ("namespace", "name", "call_id"):
            add(KEY)
            add(value(item.get(name, NULL), plain))
        write_arguments(add, item.get("arguments", item.get("input", NULL)))
    elif kind == b'"function_call_output"' or kind == b'"custom_tool_call_output"':
        add(RESULT)
        add(kind)
        add(KEY)
        add(value(item.get("call_id", NULL), plain))
        write_content(add, item.get("output", NULL), plain)
    elif kind == b'"reasoning"':
        start = len(layout.pieces)
        add(REASONING)
        content = item.get("content", NULL)
        write_content(add, content if content not in _NOTHING else item.get("summary", NULL), plain)
        layout.reasoned(start)
    else:
        add(ITEM)
        add(kind)
        for name in sorted(item):
            if name not in _UNSEEN and item[name] != NULL:
                add(KEY)
                add(dump(name))
                add(value(item[name], plain))


_NOTHING: Final = (NULL, msgspec.Raw(b"[]"))
