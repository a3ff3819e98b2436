"""The bodies of both legs in vLLM's APIs, whatever the connector."""

from __future__ import annotations

from typing import Final

import msgspec

_ONE: Final = msgspec.Raw(b"1")
_FALSE: Final = msgspec.Raw(b"false")
_LIMITS: Final = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
}
_LEFT_OUT: Final = ("stream_options", "min_tokens")
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class _Answer(msgspec.Struct, gc=False):
    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"null")
    usage: _Usage | None = None
    choices: list[_Choice] = []
    stop_reason: str | int | None = None
    """Of /v1/messages."""
    incomplete_details: _Incomplete | None = None
    """Of /v1/responses."""

    @property
    def at_limit(self) -> bool:
        """What ended it is its limit of tokens."""
        details = self.incomplete_details
        return (
            any(choice.finish_reason == "length" for choice in self.choices)
            or self.stop_reason == "max_tokens"
            or (details is not None and details.reason == "max_output_tokens")
        )


_decode_answer = msgspec.json.Decoder(_Answer).decode


class Prefilled(msgspec.Struct, frozen=True, gc=False):
    """What a prefill engine answered."""

    params: bytes
    """The JSON object for the decode engine; empty when there was none."""
    prompt_tokens: int
    """0 when it did not say."""
    cached_tokens: int
    """Of the prompt's tokens, those it had in its cache; -1 when it did not say."""
    at_limit: bool = False
    """Its limit of one token ended it, and no stop token or word."""


def supports(path: str) -> bool:
    """Whether requests to this path can be split."""
    return path in _LIMITS


def takes_salt(path: str) -> bool:
    """Whether requests to this path can be kept apart from others in the engine's cache."""
    return path != "/v1/messages"


def prefill_body(body: bytes, path: str, params: bytes, salt: str = "") -> bytes:
    """A client's body for one token and no stream, with these transfer params, where there are any,
    and with a salt so that nobody else hits what it leaves in the cache.

    Raises msgspec.DecodeError or UnicodeDecodeError when the body is no JSON object.
    """
    members = _decode(body)
    for name in _LEFT_OUT:
        members.pop(name, None)
    members["stream"] = _FALSE
    members[_LIMITS[path]] = _ONE
    if "max_completion_tokens" in members:
        members["max_completion_tokens"] = _ONE
    if "store" in members:
        members["store"] = _FALSE  # the decode engine keeps the client's answer
    if salt:
        members["cache_salt"] = msgspec.Raw(_encode(salt))
    if params:
        members["kv_transfer_params"] = msgspec.Raw(params)
    return _encode(members)


def read_answer(body: bytes) -> Prefilled:
    """Read the prefill engine's answer. Raises msgspec.DecodeError when it is not its JSON."""
    answer = _decode_answer(body)
    raw = bytes(answer.kv_transfer_params)
    usage = answer.usage
    tokens, cached = 0, -1
    if usage is not None:
        tokens = usage.prompt_tokens
        details = usage.prompt_tokens_details
        if details is not None and details.cached_tokens is not None:
            cached = details.cached_tokens
    return Prefilled(raw if raw[:1] == b"{" else b"", tokens, cached, answer.at_limit)


def insertion(params: bytes) -> bytes:
    """What goes behind the first brace of a body that has members; nothing for no params."""
    return b"" if not params else b'"kv_transfer_params":%b,' % params
