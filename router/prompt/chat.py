"""/v1/chat/completions: messages, with tools and documents where the template puts them."""

from __future__ import annotations

import msgspec

from router.prompt.canonical import (
    ABSENT,
    CALL,
    DOCUMENTS,
    KEY,
    MESSAGE,
    NAME,
    NULL,
    OTHER,
    QUOTE,
    REASONING,
    RESULT,
    TASK,
    TEXT,
    Add,
    Head,
    Memo,
    Models,
    arguments,
    cache_of,
    chain,
    compact,
    crowded,
    dump,
    is_given,
    is_plain,
    members_once,
    number,
    parse,
    plain_seed,
    seed,
    session,
    truth,
    usage_offset,
    value,
    written,
)
from router.prompt.content import (
    BILLING,
    tools,
    write_arguments,
    write_content,
    write_odd,
    write_system,
)
from router.prompt.layout import Layout
from router.prompt.priority import asked_priority
from router.prompt.prompt import Api, Prompt
from router.prompt.template_arguments import NO_ARGUMENTS, template_arguments
from router.types import DEFAULT_TRAITS, NO_TRAITS, TemplateTraits

_ROLES = {role: dump(role) for role in ("system", "developer", "user", "assistant", "tool")}

_USUAL = frozenset(("user", "assistant"))
_SYSTEM = frozenset(("system", "developer"))


class Function(msgspec.Struct, gc=False):
    """The function of a tool call."""

    name: msgspec.Raw = NULL
    arguments: msgspec.Raw = NULL


class Call(msgspec.Struct, gc=False):
    """One tool call of an assistant message."""

    id: msgspec.Raw = NULL
    function: Function | None = None


class Message(msgspec.Struct, gc=False):
    """The fields of a message that vLLM hands to the chat template."""

    role: str
    content: msgspec.Raw = ABSENT
    tool_calls: msgspec.Raw = ABSENT
    tool_call_id: msgspec.Raw = ABSENT
    name: msgspec.Raw = ABSENT
    reasoning: msgspec.Raw = ABSENT
    reasoning_content: msgspec.Raw = ABSENT
    task: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT


class ChatHead(Head, gc=False):
    """A chat body without its messages."""

    tools: msgspec.Raw = ABSENT
    documents: msgspec.Raw = ABSENT
    stream_options: msgspec.Raw = ABSENT
    n: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    max_completion_tokens: msgspec.Raw = ABSENT
    chat_template: msgspec.Raw = ABSENT
    chat_template_kwargs: msgspec.Raw = ABSENT
    reasoning_effort: msgspec.Raw = ABSENT
    add_special_tokens: msgspec.Raw = ABSENT
    mm_processor_kwargs: msgspec.Raw = ABSENT
    media_io_kwargs: msgspec.Raw = ABSENT
    truncate_prompt_tokens: msgspec.Raw = ABSENT
    truncation_side: msgspec.Raw = ABSENT


class Body(ChatHead, gc=False, kw_only=True):
    """A body whose messages all have the shape expected."""

    messages: list[Message]


class OddBody(ChatHead, gc=False, kw_only=True):
    """A body whose messages are not as expected: they are taken as the bytes they are."""

    messages: msgspec.Raw


_decode = msgspec.json.Decoder(Body).decode
_decode_odd = msgspec.json.Decoder(OddBody).decode
_decode_messages = msgspec.json.Decoder(list[Message]).decode
_decode_calls = msgspec.json.Decoder(list[Call]).decode


def parse_chat(body: bytes, models: Models = NO_TRAITS) -> Prompt:
    """The prompt of a chat body. Raises PromptError."""
    return parse(body, _build, models)


def _build(body: bytes, models: Models) -> Prompt:
    plain = is_plain(body)
    head: ChatHead
    messages: list[Message] | None
    try:
        head = typed = _decode(body)
        messages = typed.messages
    except msgspec.ValidationError:
        head = odd = _decode_odd(body)
        messages = members_once(odd.messages, _decode_messages)
    traits = models.get(head.model or "", DEFAULT_TRAITS)
    layout = Layout(traits)
    if head.tools is not ABSENT or head.documents is not ABSENT:
        layout.tools(_definitions(head))
    if messages is None or crowded(len(messages), len(body)):
        layout.led()
        write_odd(layout.add, _decode_odd(body).messages, "messages")
    else:
        _write_messages(layout, traits, messages, plain)
    given = NO_ARGUMENTS
    if head.reasoning_effort is not ABSENT or head.chat_template_kwargs is not ABSENT:
        effort = (b"reasoning_effort", head.reasoning_effort)
        given = template_arguments(traits, effort, kwargs=head.chat_template_kwargs)
    text = layout.text(given.reasoning or traits.reasoning)
    stream = truth(head.stream)
    seed_of, beside = _seed(head, cache_of(head, traits), given.heads)
    prompt = Prompt(
        head.model or "",
        chain(text, seed_of),
        len(text),
        stream,
        session(head),
        number(head.max_completion_tokens) or number(head.max_tokens),
        usage_offset(body, stream, head.stream_options),
        transfer=head.transfer,
        own_salt=head.own_salt,
        several=number(head.n) > 1,
        media=layout.media,
        doubts=layout.doubts(given.unknown),
        text=text,
    )
    if beside or given.pairs:
        prompt.arguments = written(beside, given.pairs)
    if head.priority is not ABSENT or head.service_tier is not ABSENT or head.nvext is not ABSENT:
        prompt.priority = asked_priority(head)
    return prompt


def _write_messages(
    layout: Layout, traits: TemplateTraits, messages: list[Message], plain: bool
) -> None:
    pieces, add = layout.pieces, layout.add
    system = traits.system
    leading = True
    for message in messages:
        role = message.role
        if leading:
            if role not in _SYSTEM:
                leading = False
                layout.led()
            elif role == "developer":
                system = traits.developer  # what becomes of one becomes of all
        if (
            plain
            and (role in _USUAL or leading)
            and message.tool_calls is ABSENT
            and message.tool_call_id is ABSENT
            and message.name is ABSENT
            and message.reasoning is ABSENT
            and message.reasoning_content is ABSENT
            and message.task is ABSENT
            and message.tools is ABSENT
        ):
            # Most messages take this path. It does what _write does, without its function calls.
            view = memoryview(message.content)
            billed = leading and bytes(view[: len(BILLING)]) == BILLING
            if len(view) > 2 and view[0] == QUOTE and not billed:
                pieces += (MESSAGE, _ROLES[role], TEXT, view)
                continue
        if role in _SYSTEM and not leading:
            place = system if role == "system" else traits.developer
            _write(layout, layout.inline(place), message, plain)
        else:
            _write(layout, add, message, plain)
    if leading:
        layout.led()


def _seed(
    head: ChatHead, cache: str, heads: tuple[tuple[bytes, bytes], ...]
) -> tuple[int, list[tuple[bytes, bytes]]]:
    """The seed, and what it is made of beside the model and template arguments."""
    if (
        not heads
        and head.cache_salt is ABSENT
        and head.chat_template is ABSENT
        and head.add_special_tokens is ABSENT
        and head.mm_processor_kwargs is ABSENT
        and head.media_io_kwargs is ABSENT
        and head.truncate_prompt_tokens is ABSENT
        and head.truncation_side is ABSENT
    ):
        return plain_seed(Api.CHAT, cache), []
    beside = _beside_messages(head)
    return seed(Api.CHAT, cache, [*beside, *heads]), beside


def _beside_messages(head: ChatHead) -> list[tuple[bytes, bytes]]:
    """The rest that changes a prompt, without messages, tools, documents and template arguments."""
    # Not here: add_generation_prompt and continue_final_message change only the prompt's end,
    # tool_choice and response_format no prompt but that of a model or two (docs/design/prompt.md).
    return arguments(
        (b"salt", head.cache_salt),
        (b"template", head.chat_template),
        (b"special", head.add_special_tokens),
        (b"media", head.mm_processor_kwargs),
        (b"io", head.media_io_kwargs),
        (b"truncate", head.truncate_prompt_tokens),
        (b"side", head.truncation_side),
    )


def _definitions(head: ChatHead) -> bytes:
    """The tools and documents, which templates put next to each other."""
    text = b"" if head.tools is ABSENT else tools(head.tools)
    if is_given(head.documents):
        text += DOCUMENTS + compact(head.documents)
    return text


def _write(layout: Layout, add: Add, message: Message, plain: bool) -> None:
    role = message.role
    add(MESSAGE)
    add(_ROLES.get(role) or dump(role))
    if message.name is not ABSENT:
        _write_field(add, NAME, message.name, plain)
    if message.reasoning is not ABSENT or message.reasoning_content is not ABSENT:
        reasoning = message.reasoning
        start = len(layout.pieces)
        # The field's former name counts if the new one is absent.
        former = message.reasoning_content if message.reasoning_content is not ABSENT else NULL
        _write_field(add, REASONING, reasoning if is_given(reasoning) else former, plain)
        layout.reasoned(start)
    content = message.content
    if content is not ABSENT:
        if role == "system":
            write_system(add, content, plain)
        else:
            write_content(add, content, plain)
    if message.tool_calls is not ABSENT:
        add(calls_memo(message.tool_calls))
    if message.tool_call_id is not ABSENT:
        _write_field(add, RESULT, message.tool_call_id, plain)
    if message.task is not ABSENT:
        _write_field(add, TASK, message.task, plain)
    if message.tools is not ABSENT:
        add(tools(message.tools))


def _write_field(add: Add, tag: bytes, raw: msgspec.Raw, plain: bool) -> None:
    if raw != NULL:
        add(tag)
        add(value(raw, plain))


def _canonical_calls(raw: msgspec.Raw) -> bytes:
    """Tool calls as vLLM reads them. Calls of another shape stay JSON."""
    if raw == NULL:
        return b""
    calls: list[Call] | None
    try:
        calls = _decode_calls(raw)
    except msgspec.ValidationError:
        calls = members_once(raw, _decode_calls)
    if calls is None or crowded(len(calls), len(memoryview(raw))):
        return OTHER + bytes(raw)
    pieces: list[bytes | msgspec.Raw] = []
    add = pieces.append
    for call in calls:
        add(CALL)
        add(value(call.id, False))
        function = call.function
        if function is not None:
            add(KEY)
            add(value(function.name, False))
            write_arguments(add, function.arguments)
    return b"".join(pieces)


calls_memo = Memo(_canonical_calls, 32 << 20)
"""Remembers the canonical form of tool call lists in assistant messages."""
