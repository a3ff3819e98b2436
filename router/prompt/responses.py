"""/v1/responses: instructions and input items, with tools where the template puts them."""

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
    Head,
    Models,
    arguments,
    cache_of,
    chain,
    crowded,
    dump,
    is_given,
    is_plain,
    number,
    parse,
    seed,
    session,
    string,
    truth,
    value,
    words,
    written,
)
from router.prompt.content import (
    MOST_FIELDS,
    Fields,
    tools,
    write_arguments,
    write_content,
    write_odd,
    write_system,
)
from router.prompt.layout import DEVELOPER, SYSTEM, USER, Layout
from router.prompt.priority import asked_priority
from router.prompt.prompt import Api, Prompt, PromptError
from router.prompt.template_arguments import NO_ARGUMENTS, template_arguments
from router.types import DEFAULT_TRAITS, NO_TRAITS, TemplateTraits


class Body(Head, gc=False, kw_only=True):
    """The fields of a responses body that change its prompt."""

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
    prompt_cache_options: msgspec.Raw = ABSENT


class Reasoning(msgspec.Struct, gc=False):
    """The part of ``reasoning`` that reaches the template."""

    effort: msgspec.Raw = ABSENT


class CacheOptions(msgspec.Struct, gc=False):
    """The part of ``prompt_cache_options`` that asks for a diagnosis."""

    comparison_response_id: msgspec.Raw = ABSENT


class Conversation(msgspec.Struct, gc=False):
    """The field ``conversation`` in its form as an object."""

    id: msgspec.Raw = ABSENT


_decode = msgspec.json.Decoder(Body).decode
_decode_conversation = msgspec.json.Decoder(Conversation).decode
_decode_reasoning = msgspec.json.Decoder(Reasoning).decode
_decode_cache_options = msgspec.json.Decoder(CacheOptions).decode
_decode_items = msgspec.json.Decoder(list[Fields]).decode

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
    first = memoryview(head.input)[0]
    if first == QUOTE:
        layout.led()
        add(MESSAGE)
        add(USER)
        write_content(add, head.input, plain)
    elif first == BRACKET:
        _write_items(layout, traits, head.input, plain)
    else:
        raise PromptError("'input' must be a string or an array of items.", "input")
    given = NO_ARGUMENTS
    if head.reasoning is not ABSENT or head.chat_template_kwargs is not ABSENT:
        effort = (b"reasoning_effort", _effort(head.reasoning))
        given = template_arguments(traits, effort, kwargs=head.chat_template_kwargs)
    text = layout.text(given.reasoning or traits.reasoning)
    beside = _beside_input(head)
    prompt = Prompt(
        head.model or "",
        chain(text, seed(Api.RESPONSES, cache_of(head, traits), [*beside, *given.heads])),
        len(text),
        truth(head.stream),
        session(head),
        number(head.max_output_tokens),
        -1,  # its last event has the usage anyway
        transfer=head.transfer,
        own_salt=head.own_salt,
        follows=words(head.previous_response_id) or _conversation(head.conversation),
        media=layout.media,
        doubts=layout.doubts(given.unknown),
        text=text,
    )
    if beside or given.pairs:
        prompt.arguments = written(beside, given.pairs)
    if is_given(head.prompt_cache_options):
        prompt.compares_with = _compared(head.prompt_cache_options)
        prompt.compares_as = "openai" if prompt.compares_with else ""
    if head.priority is not ABSENT or head.service_tier is not ABSENT or head.nvext is not ABSENT:
        prompt.priority = asked_priority(head)
    return prompt


def _conversation(raw: msgspec.Raw) -> str:
    """The id of a conversation, given as text or in an object."""
    if is_given(raw) and memoryview(raw)[0] == BRACE:
        try:
            return words(_decode_conversation(raw).id)
        except msgspec.ValidationError:
            return ""
    return words(raw)


def _effort(reasoning: msgspec.Raw) -> msgspec.Raw:
    if not is_given(reasoning):
        return ABSENT
    try:
        return _decode_reasoning(reasoning).effort
    except msgspec.ValidationError:
        return reasoning


def _beside_input(head: Body) -> list[tuple[bytes, bytes]]:
    """What goes into the seed beside the model and template arguments."""
    return arguments(
        (b"salt", head.cache_salt),
        (b"previous", head.previous_response_id),
        (b"conversation", head.conversation),
        (b"messages", head.previous_input_messages),
        (b"prompt", head.prompt),
        (b"media", head.mm_processor_kwargs),
        (b"io", head.media_io_kwargs),
    )


def _compared(options: msgspec.Raw) -> str:
    """The id of the response to compare with; empty without one."""
    try:
        return words(_decode_cache_options(options).comparison_response_id)
    except msgspec.ValidationError:
        return ""


def _write_items(layout: Layout, traits: TemplateTraits, raw: msgspec.Raw, plain: bool) -> None:
    try:
        items = _decode_items(raw)
        usual = not crowded(len(items), len(memoryview(raw)))
    except msgspec.ValidationError:
        usual = False
    if not usual:
        layout.led()
        write_odd(layout.add, raw, "input")
        return
    leading = True
    for item in items:
        role = _role(item, plain)
        system = role in (SYSTEM, DEVELOPER)
        if leading and not system:
            leading = False
            layout.led()
        add = layout.add
        if system and not leading:
            add = layout.inline(traits.system if role == SYSTEM else traits.developer)
        _write_item(layout, add, item, role, plain)
    if leading:
        layout.led()


def _role(item: Fields, plain: bool) -> bytes:
    """The role of a message; empty for any other item."""
    kind = bytes(string(item.get("type", NULL), plain))
    if kind == b'"message"' or (kind == b"null" and "role" in item):
        return bytes(value(item.get("role", NULL), plain))
    return b""


def _write_item(layout: Layout, add: Add, item: Fields, role: bytes, plain: bool) -> None:
    if len(item) > MOST_FIELDS:
        add(ITEM)
        add(dump(item))
        return
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
