"""/v1/completions: one prompt or several, as text or as token ids."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from router.prompt.canonical import (
    ABSENT,
    BRACKET,
    NULL,
    QUOTE,
    Head,
    Models,
    arguments,
    cache_of,
    chain,
    is_plain,
    number,
    parse,
    seed,
    session,
    string,
    truth,
    usage_offset,
)
from router.prompt.priority import asked_priority
from router.prompt.prompt import Api, Prompt, PromptError
from router.types import DEFAULT_TRAITS, NO_TRAITS

_WHITESPACE: Final = b" \t\r\n"
MOST_PROMPTS: Final = 256
"""The most prompts of one body that are looked up and recorded."""
_token_ids = re.compile(rb"[0-9,\-]*").fullmatch


class Body(Head, gc=False):
    """The fields of a completion body that change its prompt."""

    prompt: msgspec.Raw = NULL
    stream_options: msgspec.Raw = ABSENT
    n: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    suffix: msgspec.Raw = ABSENT
    prompt_embeds: msgspec.Raw = ABSENT
    add_special_tokens: msgspec.Raw = ABSENT
    truncate_prompt_tokens: msgspec.Raw = ABSENT
    truncation_side: msgspec.Raw = ABSENT


_DEFAULT_ANSWER: Final = 16
"""The API's own longest answer, of a body that names none."""

_decode = msgspec.json.Decoder(Body).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def parse_completions(body: bytes, models: Models = NO_TRAITS) -> Prompt:
    """The prompt of a completion body, or its prompts. Raises PromptError."""
    return parse(body, _build, models)


def _build(body: bytes, models: Models) -> Prompt:
    head = _decode(body)
    kind, texts, size = _prompts(head.prompt, is_plain(body))
    stream = truth(head.stream)
    traits = models.get(head.model or "", DEFAULT_TRAITS)
    first = _seed(head, kind, cache_of(head, traits))
    prompt = Prompt(
        head.model or "",
        chain(texts[0], first),
        size,
        stream,
        session(head),
        _DEFAULT_ANSWER if head.max_tokens is ABSENT else number(head.max_tokens),
        usage_offset(body, stream, head.stream_options),
        transfer=head.transfer,
        own_salt=head.own_salt,
        several=number(head.n) > 1 or len(texts) > 1,
        more=tuple(chain(text, first) for text in texts[1:] if text),
        text=texts[0] if len(texts) == 1 else b"",
    )
    if head.priority is not ABSENT or head.service_tier is not ABSENT or head.nvext is not ABSENT:
        prompt.priority = asked_priority(head)
    return prompt


def _seed(head: Body, kind: str, cache: str) -> int:
    return seed(
        kind,
        cache,
        arguments(
            (b"salt", head.cache_salt),
            (b"suffix", head.suffix),
            (b"embeds", head.prompt_embeds),
            (b"special", head.add_special_tokens),
            (b"truncate", head.truncate_prompt_tokens),
            (b"side", head.truncation_side),
        ),
    )


TEXT: Final = Api.COMPLETIONS + " text"
COMPLETION_TOKENS: Final = Api.COMPLETIONS + " tokens"


def token_ids(raw: msgspec.Raw) -> bytes | None:
    """An array of token ids without its brackets; None for another value.

    It needs no decoding: an integer has one spelling, and no other byte may be there.
    """
    view = memoryview(raw)
    if view[0] != BRACKET:
        return None
    inner = bytes(view[1:-1]).translate(None, _WHITESPACE)
    return inner if _token_ids(inner) else None


def _prompts(raw: msgspec.Raw, plain: bool) -> tuple[str, list[bytes], int]:
    """The kind of the prompts, and their canonical bytes: of each of the first MOST_PROMPTS, and of
    all together."""
    view = memoryview(raw)
    first = view[0]
    if first == QUOTE:
        text = _text(raw, plain)
        return TEXT, [text], len(text)
    if first != BRACKET:
        if raw == NULL:
            return TEXT, [b""], 0
        raise PromptError("'prompt' must be a string, an array of strings, or token ids.", "prompt")
    # Token ids need no decoding: an integer has one spelling, and no other byte may be there.
    inner = bytes(view[1:-1]).translate(None, _WHITESPACE)
    if _token_ids(inner):
        return COMPLETION_TOKENS, [inner], len(inner)
    if inner[0] == BRACKET:
        ids = inner[1:-1].split(b"],[", MOST_PROMPTS)
        size = len(inner) - 2 * inner.count(b"[") - inner.count(b"],[")
        if not inner.endswith(b"]") or not all(map(_token_ids, ids[:MOST_PROMPTS])):
            raise PromptError("'prompt' must hold arrays of token ids.", "prompt")
        return COMPLETION_TOKENS, ids[:MOST_PROMPTS], size
    prompts = _decode_list(raw)
    looked_at = prompts[:MOST_PROMPTS]
    if any(memoryview(each)[0] != QUOTE for each in looked_at):
        raise PromptError("'prompt' must be a string, an array of strings, or token ids.", "prompt")
    texts = [_text(each, plain) for each in looked_at]
    return TEXT, texts, sum(map(len, texts)) if len(texts) == len(prompts) else len(view)


def _text(raw: msgspec.Raw, plain: bool) -> bytes:
    """The canonical bytes of a text prompt, without its quotes."""
    return bytes(memoryview(string(raw, plain))[1:-1])
