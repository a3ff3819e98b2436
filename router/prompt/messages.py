"""/v1/messages (Anthropic): the system prompt and the messages, with tools where the template has
them."""

from __future__ import annotations

import msgspec

from router.prompt.canonical import (
    ABSENT,
    MESSAGE,
    NULL,
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
    members_once,
    number,
    parse,
    seed,
    session,
    truth,
    words,
    written,
)
from router.prompt.content import tools, write_content, write_odd, write_system
from router.prompt.layout import SYSTEM, Layout
from router.prompt.priority import asked_priority
from router.prompt.prompt import Api, Prompt
from router.prompt.template_arguments import (
    NO_ARGUMENTS,
    TemplateArguments,
    template_arguments,
)
from router.types import DEFAULT_TRAITS, NO_TRAITS, Inline, TemplateTraits

_ROLES = {role: dump(role) for role in ("system", "user", "assistant")}


class Message(msgspec.Struct, gc=False):
    """A message of the messages API."""

    role: str
    content: msgspec.Raw = NULL


class MessagesHead(Head, gc=False):
    """A messages body without its messages."""

    system: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    metadata: msgspec.Raw = ABSENT
    thinking: msgspec.Raw = ABSENT
    output_config: msgspec.Raw = ABSENT
    chat_template_kwargs: msgspec.Raw = ABSENT
    diagnostics: msgspec.Raw = ABSENT


class Body(MessagesHead, gc=False, kw_only=True):
    """A body whose messages are all objects."""

    messages: list[Message]


class OddBody(MessagesHead, gc=False, kw_only=True):
    """A body whose messages are not as expected: they are taken as the bytes they are."""

    messages: msgspec.Raw


class Setting(msgspec.Struct, gc=False):
    """The fields that are read of metadata, thinking, output_config and diagnostics."""

    user_id: msgspec.Raw = ABSENT
    type: msgspec.Raw = ABSENT
    effort: msgspec.Raw = ABSENT
    previous_message_id: msgspec.Raw = ABSENT


_decode = msgspec.json.Decoder(Body).decode
_decode_odd = msgspec.json.Decoder(OddBody).decode
_decode_messages = msgspec.json.Decoder(list[Message]).decode
_decode_setting = msgspec.json.Decoder(Setting).decode


def parse_messages(body: bytes, models: Models = NO_TRAITS) -> Prompt:
    """The prompt of a messages body. Raises PromptError."""
    return parse(body, _build, models)


def _build(body: bytes, models: Models) -> Prompt:
    plain = is_plain(body)
    head: MessagesHead
    messages: list[Message] | None
    try:
        head = typed = _decode(body)
        messages = typed.messages
    except msgspec.ValidationError:
        head = odd = _decode_odd(body)
        messages = members_once(odd.messages, _decode_messages)
    traits = models.get(head.model or "", DEFAULT_TRAITS)
    layout = Layout(traits)
    if head.tools is not ABSENT:
        layout.tools(tools(head.tools))
    if is_given(head.system) and head.system != b'""':
        layout.add(MESSAGE)
        layout.add(SYSTEM)
        write_system(layout.add, head.system, plain)
    layout.led()
    if messages is None or crowded(len(messages), len(body)):
        write_odd(layout.add, _decode_odd(body).messages, "messages")
    else:
        for message in messages:
            add = layout.add
            if message.role == "system":
                add = layout.inline(Inline.MOVED if traits.merges_system else traits.system)
            _write(layout, add, message, plain)
    given = _arguments(head, traits)
    text = layout.text(given.reasoning or traits.reasoning)
    salt = arguments((b"salt", head.cache_salt))
    prompt = Prompt(
        head.model or "",
        chain(text, seed(Api.MESSAGES, cache_of(head, traits), [*salt, *given.heads])),
        len(text),
        truth(head.stream),
        session(head) or words(_setting(head.metadata).user_id),
        number(head.max_tokens),
        -1,  # the stream's first and last events have the usage anyway
        transfer=head.transfer,
        own_salt=head.own_salt,
        media=layout.media,
        doubts=layout.doubts(given.unknown),
        text=text,
    )
    if salt or given.pairs:
        prompt.arguments = written(salt, given.pairs)
    if head.diagnostics is not ABSENT and is_given(head.diagnostics):
        prompt.compares_as = "anthropic"
        prompt.compares_with = words(_setting(head.diagnostics).previous_message_id)
    if head.priority is not ABSENT or head.service_tier is not ABSENT or head.nvext is not ABSENT:
        prompt.priority = asked_priority(head)
    return prompt


def _arguments(head: MessagesHead, traits: TemplateTraits) -> TemplateArguments:
    if (
        head.thinking is ABSENT
        and head.output_config is ABSENT
        and head.chat_template_kwargs is ABSENT
    ):
        return NO_ARGUMENTS
    if _setting(head.thinking).type == _DISABLED:
        # vLLM turns it into an effort, whatever output_config says, and any other type into none.
        effort = (b"thinking", _DISABLED)
    else:
        effort = (b"reasoning_effort", _setting(head.output_config).effort)
    return template_arguments(traits, effort, kwargs=head.chat_template_kwargs)


_DISABLED = msgspec.Raw(b'"disabled"')


def _setting(raw: msgspec.Raw) -> Setting:
    if raw is ABSENT:
        return _NO_SETTING
    try:
        return _decode_setting(raw)
    except msgspec.ValidationError:
        return _NO_SETTING


_NO_SETTING = Setting()


def _write(layout: Layout, add: Add, message: Message, plain: bool) -> None:
    role = message.role
    content = message.content
    add(MESSAGE)
    add(_ROLES.get(role) or dump(role))
    if role == "system":
        write_system(add, content, plain)
        return
    write_content(add, content, plain)
    if role == "assistant":
        layout.content()
