"""What clients are told: refusals in words, and the headers that their libraries read."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec

from router.tenants.accounts import (
    DAY,
    INPUT,
    MILLION,
    MONEY,
    MONTH,
    OUTPUT,
    REQUESTS,
    TOKENS,
    Denial,
    Stand,
)
from router.tenants.identity import AuthFailure

_encode: Final = msgspec.json.Encoder().encode


def _template(name: str) -> bytes:
    """Three lines of a head. name: with a place for what it tells."""
    limit, remaining, reset = (name.format(word) for word in ("limit", "remaining", "reset"))
    return f"{limit}: %d\r\n{remaining}: %d\r\n{reset}: %b\r\n".encode()


_OPENAI_REQUESTS: Final = _template("x-ratelimit-{}-requests")
_OPENAI_TOKENS: Final = _template("x-ratelimit-{}-tokens")
_ANTHROPIC: Final = {
    REQUESTS: _template("anthropic-ratelimit-requests-{}"),
    TOKENS: _template("anthropic-ratelimit-tokens-{}"),
    INPUT: _template("anthropic-ratelimit-input-tokens-{}"),
    OUTPUT: _template("anthropic-ratelimit-output-tokens-{}"),
}


class Refusal(msgspec.Struct, frozen=True):
    """An answer instead of the engine's."""

    status: int
    message: str
    kind: str
    """The type of the error, in OpenAI's words."""
    code: str
    """The code of the error, in OpenAI's words."""
    anthropic_kind: str
    """The type of the error, in Anthropic's words."""
    retry_after: int = 0
    """Seconds; 0 where another try would end in the same way."""

    def body(self, anthropic: bool) -> bytes:
        """The error as the API has it."""
        if anthropic:
            error = {"type": self.anthropic_kind, "message": self.message}
            return _encode({"type": "error", "error": error})
        told = {"message": self.message, "type": self.kind, "param": None, "code": self.code}
        return _encode({"error": told})


def unauthorized(failure: AuthFailure) -> Refusal:
    """Nobody knows who this is."""
    return Refusal(
        401, failure.message, "invalid_request_error", "invalid_api_key", "authentication_error"
    )


def forbidden_model(model: str) -> Refusal:
    """A model that is not for this key."""
    return Refusal(
        403,
        f"This API key may not use the model `{model}`."
        if model
        else "Name a model: what this API key may use, or is charged, depends on it.",
        "invalid_request_error",
        "model_not_allowed",
        "permission_error",
    )


def leaking_model(model: str) -> Refusal:
    """An engine of this model was found to drop salts."""
    return Refusal(
        503,
        f"The model `{model}` is not served just now: one of its engines does not keep tenants' "
        "caches apart.",
        "server_error",
        "isolation_unproven",
        "api_error",
    )


def forbidden_path() -> Refusal:
    """A path whose prompts cannot be kept apart."""
    return Refusal(
        403,
        "This path is not served while tenants' caches are kept apart: engines have no cache_salt "
        "for it.",
        "invalid_request_error",
        "path_not_isolated",
        "permission_error",
    )


def bad_body() -> Refusal:
    """No JSON object, in UTF-8, that a salt could be put into."""
    return Refusal(
        400,
        "The body is not a JSON object in UTF-8.",
        "invalid_request_error",
        "invalid_body",
        "invalid_request_error",
    )


def too_long(what: str, given: int, longest: int) -> Refusal:
    """A prompt or an answer beyond what is allowed. what: its name in a sentence."""
    return Refusal(
        400,
        f"{what} is {given} tokens; this API key is allowed {longest}.",
        "invalid_request_error",
        "context_length_exceeded",
        "invalid_request_error",
    )


def not_kept(name: str) -> Refusal:
    """A stored response or a conversation that is not this tenant's, or of nobody."""
    return Refusal(
        404,
        f"`{name}` was not found.",
        "invalid_request_error",
        "not_found",
        "not_found_error",
    )


def unbounded(longest: int) -> Refusal:
    """The body names no longest answer where it must."""
    return Refusal(
        400,
        f"Name sampling_params.max_tokens: this API key is allowed {longest}.",
        "invalid_request_error",
        "max_tokens_required",
        "invalid_request_error",
    )


def unbounded_path() -> Refusal:
    """A path whose answers cannot be bounded from outside."""
    return Refusal(
        403,
        "This path is not served to API keys whose longest answer is limited.",
        "invalid_request_error",
        "path_not_bounded",
        "permission_error",
    )


def over_limit(denial: Denial) -> Refusal:
    """A limit is exceeded."""
    over = denial.over
    if over is None:
        return Refusal(
            503,
            "Limits cannot be checked just now; try again.",
            "server_error",
            "limits_unavailable",
            "api_error",
            1,
        )
    limit = over.limit
    wait = max(math.ceil(over.wait), 1)
    scope = over.account.scope
    cap, left = shown(limit.measure, limit.cap), shown(limit.measure, over.left)
    message = (
        f"Rate limit reached: {limit.name} of this {scope} is {cap}, {left} left. "
        f"Try again in {duration(wait)}."
    )
    spent = limit.period in (DAY, MONTH)
    return Refusal(
        429,
        message,
        "insufficient_quota" if spent else "requests" if limit.measure == REQUESTS else "tokens",
        "insufficient_quota" if spent else "rate_limit_exceeded",
        "rate_limit_error",
        wait,
    )


def shown(measure: int, amount: int) -> str:
    """An amount for people."""
    return f"{amount / MILLION:.6g}" if measure == MONEY else str(amount)


def duration(seconds: float) -> str:
    """As OpenAI writes it: 1h0m5s, 12s, 250ms."""
    if 0 < seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def openai_headers(stands: Mapping[int, Stand]) -> bytes:
    """x-ratelimit-*, as lines of a head."""
    lines = b""
    stand = stands.get(REQUESTS)
    if stand is not None:
        reset = _shown_duration(math.ceil(stand.reset))
        lines = _OPENAI_REQUESTS % (stand.cap, stand.left, reset)
    stand = stands.get(TOKENS) or stands.get(INPUT) or stands.get(OUTPUT)
    if stand is not None:
        reset = _shown_duration(math.ceil(stand.reset))
        lines += _OPENAI_TOKENS % (stand.cap, stand.left, reset)
    return lines


def anthropic_headers(stands: Mapping[int, Stand]) -> bytes:
    """anthropic-ratelimit-*, as lines of a head."""
    now = time.time()
    return b"".join(
        _ANTHROPIC[measure] % (stand.cap, stand.left, _rfc3339(math.ceil(now + stand.reset)))
        for measure, stand in stands.items()
    )


@lru_cache(maxsize=128)
def _shown_duration(seconds: int) -> bytes:
    return duration(seconds).encode()


@lru_cache(maxsize=256)
def _rfc3339(second: int) -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second)).encode()
