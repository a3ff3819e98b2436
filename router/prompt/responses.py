"""/v1/responses: tools, instructions, then the input items."""

from __future__ import annotations

from typing import Final

import msgspec

from router.prompt.canonical import (
    ABSENT,
    BRACE,
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
    crowded,
    dump,
    is_given,
    is_plain,
    number,
    string,
    truth,
    value,
    words,
)
from router.prompt.chain import chain, seed
from router.prompt.content import (
    MOST_FIELDS,
    Fields,
    tools,
    write_arguments,
    write_content,
    write_odd,
    write_system,
)
from router.prompt.prompt import Api, Prompt, PromptError
from router.prompt.reading import Head, arguments, parse, session


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


class Conversation(msgspec.Struct, gc=False):
    """``conversation`` as an object."""

    id: msgspec.Raw = ABSENT


_decode = msgspec.json.Decoder(Body).decode
_decode_conversation = msgspec.json.Decoder(Conversation).decode
_decode_reasoning = msgspec.json.Decoder(Reasoning).decode
_decode_items = msgspec.json.Decoder(list[Fields]).decode

_SYSTEM: Final = b'"system"'
_UNSEEN: Final = frozenset(("id", "status", "type", "encrypted_content"))


def parse_responses(body: bytes) -> Prompt:
    """The prompt of a responses body. Raises PromptError."""
    return parse(body, _build)


def _build(body: bytes) -> Prompt:
    head = _decode(body)
    plain = is_plain(body)
    pieces: list[bytes | msgspec.Raw] = []
    add = pieces.append
    if head.tools is not ABSENT:
        add(tools(head.tools))
    if is_given(head.instructions) and head.instructions != b'""':
        add(MESSAGE)
        add(_SYSTEM)
        write_system(add, head.instructions, plain)
    first = memoryview(head.input)[0]
    if first == QUOTE:
        add(MESSAGE)
        add(b'"user"')
        write_content(add, head.input, plain)
    elif first == BRACKET:
        _write_items(add, head.input, plain)
    else:
        raise PromptError("'input' must be a string or an array of items.", "input")
    text = b"".join(pieces)
    return Prompt(
        head.model or "",
        chain(text, _seed(head)),
        len(text),
        truth(head.stream),
        session(head),
        number(head.max_output_tokens),
        -1,  # its last event has the usage anyway
        transfer=head.transfer,
        follows=words(head.previous_response_id) or _conversation(head.conversation),
    )


def _conversation(raw: msgspec.Raw) -> str:
    """Its id, given alone or in an object."""
    if is_given(raw) and memoryview(raw)[0] == BRACE:
        try:
            return words(_decode_conversation(raw).id)
        except msgspec.ValidationError:
            return ""
    return words(raw)


def _seed(head: Body) -> int:
    effort = ABSENT
    if is_given(head.reasoning):
        try:
            effort = _decode_reasoning(head.reasoning).effort
        except msgspec.ValidationError:
            effort = head.reasoning
    return seed(
        Api.RESPONSES,
        head.model or "",
        arguments(
            (b"salt", head.cache_salt),
            (b"previous", head.previous_response_id),
            (b"conversation", head.conversation),
            (b"messages", head.previous_input_messages),
            (b"prompt", head.prompt),
            (b"effort", effort),
            (b"kwargs", head.chat_template_kwargs),
            (b"media", head.mm_processor_kwargs),
            (b"io", head.media_io_kwargs),
        ),
    )


def _write_items(add: Add, raw: msgspec.Raw, plain: bool) -> None:
    try:
        items = _decode_items(raw)
        usual = not crowded(len(items), len(memoryview(raw)))
    except msgspec.ValidationError:
        usual = False
    if not usual:
        write_odd(add, raw, "input")
        return
    for item in items:
        _write_item(add, item, plain)


def _write_item(add: Add, item: Fields, plain: bool) -> None:
    kind = bytes(string(item.get("type", NULL), plain))
    if len(item) > MOST_FIELDS:
        add(ITEM)
        add(dump(item))
    elif kind == b'"message"' or (kind == b"null" and "role" in item):
        role = bytes(value(item.get("role", NULL), plain))
        add(MESSAGE)
        add(role)
        content = item.get("content", NULL)
        if role == _SYSTEM:
            write_system(add, content, plain)
        else:
            write_content(add, content, plain)
    elif kind == b'"function_call"' or kind == b'"custom_tool_call"':
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
        add(REASONING)
        content = item.get("content", NULL)
        write_content(add, content if content not in _NOTHING else item.get("summary", NULL), plain)
    else:
        add(ITEM)
        add(kind)
        for name in sorted(item):
            if name not in _UNSEEN and item[name] != NULL:
                add(KEY)
                add(dump(name))
                add(value(item[name], plain))


_NOTHING: Final = (NULL, msgspec.Raw(b"[]"))
