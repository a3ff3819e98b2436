"""Bodies of other paths that hold a prompt: token ids to generate from, a query to score items
with, and whatever a hosting platform sends to its one path."""

from __future__ import annotations

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
from router.prompt.chat import parse_chat
from router.prompt.completions import COMPLETION_TOKENS, TEXT, parse_completions, token_ids
from router.prompt.lenient import decoded
from router.prompt.prompt import Prompt, PromptError
from router.types import DEFAULT_TRAITS, NO_TRAITS


class _Sampling(msgspec.Struct, gc=False):
    max_tokens: msgspec.Raw = ABSENT


class GenerateBody(Head, gc=False, kw_only=True):
    """The fields of a body of /inference/v1/generate that change its prompt."""

    token_ids: msgspec.Raw
    stream_options: msgspec.Raw = ABSENT
    features: msgspec.Raw = ABSENT
    content_parts: msgspec.Raw = ABSENT


class ScoringBody(Head, gc=False, kw_only=True):
    """A body of /generative_scoring: each prompt is the query and an item, or the other way
    round."""

    query: msgspec.Raw
    items: msgspec.Raw = NULL
    item_first: msgspec.Raw = ABSENT
    add_special_tokens: msgspec.Raw = ABSENT


class _Kind(msgspec.Struct, gc=False):
    """The fields by which the engine tells kinds of body on /invocations apart, in its order."""

    messages: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT


_decode_generate = msgspec.json.Decoder(GenerateBody).decode
_decode_sampling = msgspec.json.Decoder(_Sampling).decode
_decode_scoring = msgspec.json.Decoder(ScoringBody).decode
_decode_kind = msgspec.json.Decoder(_Kind).decode


def parse_generate(body: bytes, models: Models = NO_TRAITS) -> Prompt:
    """The prompt of a body of token ids. Raises PromptError."""
    return parse(body, _build_generate, models)


def _build_generate(body: bytes, models: Models) -> Prompt:
    head = _decode_generate(body)
    traits = models.get(head.model or "", DEFAULT_TRAITS)
    ids = token_ids(head.token_ids)
    if ids is None:
        raise PromptError("'token_ids' must be an array of token ids.", "token_ids")
    limit = 0
    if head.sampling_params is not ABSENT:
        try:
            limit = number(_decode_sampling(head.sampling_params).max_tokens)
        except msgspec.ValidationError:
            limit = 0
    stream = truth(head.stream)
    given = arguments(
        (b"salt", head.cache_salt), (b"features", head.features), (b"parts", head.content_parts)
    )
    return Prompt(
        head.model or "",
        # The same tokens are the same prompt as a completion's.
        chain(ids, seed(COMPLETION_TOKENS, cache_of(head, traits), given)),
        len(ids),
        stream,
        session(head),
        limit,
        usage_offset(body, stream, head.stream_options),
        transfer=head.transfer,
        own_salt=head.own_salt,
    )


def parse_scoring(body: bytes, models: Models = NO_TRAITS) -> Prompt:
    """The prompts of a scoring body: what they begin with in common. Raises PromptError."""
    return parse(body, _build_scoring, models)


def _build_scoring(body: bytes, models: Models) -> Prompt:
    head = _decode_scoring(body)
    traits = models.get(head.model or "", DEFAULT_TRAITS)
    kind, text = _text_or_tokens(head.query, "query")
    size = len(text) + len(memoryview(head.items))
    if truth(head.item_first):
        # Every prompt begins with another item: nothing is shared but by chance.
        text = b""
    given = arguments((b"salt", head.cache_salt), (b"special", head.add_special_tokens))
    return Prompt(
        head.model or "",
        chain(text, seed(kind, cache_of(head, traits), given)),
        size,
        False,
        session(head),
        1,
        -1,
        transfer=head.transfer,
        own_salt=head.own_salt,
    )


def _text_or_tokens(raw: msgspec.Raw, field: str) -> tuple[str, bytes]:
    first = memoryview(raw)[0]
    if first == QUOTE:
        return TEXT, bytes(memoryview(string(raw, is_plain(raw)))[1:-1])
    ids = token_ids(raw) if first == BRACKET else None
    if ids is None:
        raise PromptError(f"{field!r} must be a string or an array of token ids.", field)
    return COMPLETION_TOKENS, ids


def parse_invocations(body: bytes, models: Models = NO_TRAITS) -> Prompt | None:
    """The prompt of a body that is a chat's or a completion's; None for one of another kind.

    Raises PromptError.
    """
    kind = decoded(_decode_kind, body)
    if kind is None:
        return None
    if kind.messages is not ABSENT:
        return parse_chat(body, models)
    return parse_completions(body, models) if kind.prompt is not ABSENT else None
