"""Proves on a live engine that salts keep caches apart: on every API, in a pair.

A prompt that nobody has sent before goes out twice with one salt, then with another, then with
none. The second must find the first's blocks, or the engine drops the salt's effect the other way;
the others must find none, or it drops the salt.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import httpx
import msgspec

_WORDS: Final = 600
"""Of a probe's prompt: several blocks of any usual size."""
_TOKENS: Final = 600
_NOT_SERVED: Final = frozenset((404, 405, 501))

PATHS: Final = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "token ids": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "generate": "/inference/v1/generate",
}
"""API -> its path."""


class Verdict(msgspec.Struct, frozen=True):
    """What one API of an engine does with salts."""

    api: str
    leaks: bool = False
    """A prompt found blocks that another salt's had made."""
    never_hits: bool = False
    """Not even a prompt with the same salt found any."""
    unproven: str = ""
    """Why it cannot be told; empty where it can."""

    @property
    def proven(self) -> bool:
        """The same salt hits, and others miss."""
        return not (self.leaks or self.never_hits or self.unproven)


async def check_isolation(client: httpx.AsyncClient, url: str, model: str) -> list[Verdict]:
    """A verdict for each API that an engine serves. Raises httpx.HTTPError."""
    found = []
    for api in PATHS:
        verdict = await _check(client, url, model, api)
        if verdict is not None:
            found.append(verdict)
    return found


async def _check(client: httpx.AsyncClient, url: str, model: str, api: str) -> Verdict | None:
    start = secrets.token_hex(8)
    body = _body(api, model, start)
    cached: list[int | None] = []
    for salt in (f"a-{start}", f"a-{start}", f"b-{start}", ""):
        given = {**body, "cache_salt": salt} if salt else body
        answer = await client.post(url + PATHS[api], json=given)
        if answer.status_code in _NOT_SERVED:
            return None
        if answer.status_code != 200:
            return Verdict(api, unproven=f"a probe was answered with {answer.status_code}")
        cached.append(_cached(answer.content))
    if all(told is None for told in cached):
        return Verdict(api, unproven="the engine does not tell cached tokens")
    # SGLang tells them where there are any, and leaves the field out otherwise.
    _, same, other, unsalted = (told or 0 for told in cached)
    return Verdict(api, leaks=other > 0 or unsalted > 0, never_hits=same == 0)


def _body(api: str, model: str, start: str) -> dict[str, Any]:
    text = start + " word" * _WORDS
    if api == "chat":
        return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
    if api == "completions":
        return {"model": model, "prompt": text, "max_tokens": 1}
    if api == "responses":
        return {"model": model, "input": text, "max_output_tokens": 1, "store": False}
    if api == "messages":
        return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
    # Token ids that every vocabulary has, in an order that nobody has sent.
    ids = [1 + secrets.randbelow(200) for _ in range(_TOKENS)]
    if api == "token ids":
        return {"model": model, "prompt": ids, "max_tokens": 1}
    return {"model": model, "token_ids": ids, "sampling_params": {"max_tokens": 1}}


def _cached(content: bytes) -> int | None:
    """The cached tokens that an answer tells of; None where it tells of none."""
    try:
        usage = msgspec.json.decode(content)["usage"]
        if usage.get("cache_read_input_tokens") is not None:
            return int(usage["cache_read_input_tokens"])
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        told = details.get("cached_tokens") if details else None
        return None if told is None else int(told)
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError, ValueError):
        return None
