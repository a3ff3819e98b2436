"""/v1/messages (Anthropic): tools, the system prompt, then the messages."""

from __future__ import annotations

import msgspec

from router.prompt.canonical import (
    ABSENT,
    MESSAGE,
    NULL,
    Add,
    crowded,
    dump,
    is_given,
    is_plain,
    members_once,
    number,
    truth,
    words,
)
from router.prompt.chain import chain, seed
from router.prompt.content import tools, write_content, write_odd, write_system
from router.prompt.prompt import Api, Prompt
from router.prompt.reading import Head, arguments, parse, session

_ROLES = {role: dump(role) for role in ("system", "user", "assistant")}


class Message(msgspec.Struct, gc=False):
    """One message."""

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


class Body(MessagesHead, gc=False, kw_only=True):
    """A body whose messages are all objects."""

    messages: list[Message]


class OddBody(MessagesHead, gc=False, kw_only=True):
    """A body whose messages are not as expected: they are taken as the bytes they are."""

    messages: msgspec.Raw


class Setting(msgspec.Struct, gc=False):
    """The fields of metadata, thinking and output_config that are read."""

    user_id: msgspec.Raw = ABSENT
    type: msgspec.Raw = ABSENT
    effort: msgspec.Raw = ABSENT


_decode = msgspec.json.Decoder(Body).decode
_decode_odd = msgspec.json.Decoder(OddBody).decode
_decode_messages = msgspec.json.Decoder(list[Message]).decode
_decode_setting = msgspec.json.Decoder(Setting).decode


def parse_messages(body: bytes) -> Prompt:
    """The prompt of a messages body. Raises PromptError."""
    return parse(body, _build)


def _build(body: bytes) -> Prompt:
    plain = is_plain(body)
    pieces: list[bytes | msgspec.Raw] = []
    add = pieces.append
    head: MessagesHead
    messages: list[Message] | None
    try:
        head = typed = _decode(body)
        messages = typed.messages
    except msgspec.ValidationError:
        head = odd = _decode_odd(body)
        messages = members_once(odd.messages, _decode_messages)
    _write_head(add, head, plain)
    if messages is None or crowded(len(messages), len(body)):
        write_odd(add, _decode_odd(body).messages, "messages")
    else:
        for message in messages:
            _write(add, message, plain)
    text = b"".join(pieces)
    return Prompt(
        head.model or "",
        chain(text, _seed(head)),
        len(text),
        truth(head.stream),
        session(head) or words(_setting(head.metadata).user_id),
        number(head.max_tokens),
        -1,  # the stream's first and last events have the usage anyway
        head.transfer,
    )


def _seed(head: MessagesHead) -> int:
    return seed(
        Api.MESSAGES,
        head.model or "",
        arguments(
            (b"salt", head.cache_salt),
            (b"kwargs", head.chat_template_kwargs),
            (b"thinking", _setting(head.thinking).type),
            (b"effort", _setting(head.output_config).effort),
        ),
    )


def _setting(raw: msgspec.Raw) -> Setting:
    if raw is ABSENT:
        return _NO_SETTING
    try:
        return _decode_setting(raw)
    except msgspec.ValidationError:
        return _NO_SETTING


_NO_SETTING = Setting()


def _write_head(add: Add, head: MessagesHead, plain: bool) -> None:
    if head.tools is not ABSENT:
        add(tools(head.tools))
    if is_given(head.system) and head.system != b'""':
        add(MESSAGE)
        add(_ROLES["system"])
        write_system(add, head.system, plain)


def _write(add: Add, message: Message, plain: bool) -> None:
    role = message.role
    add(MESSAGE)
    add(_ROLES.get(role) or dump(role))
    if role == "system":
        write_system(add, message.content, plain)
    else:
        write_content(add, message.content, plain)
