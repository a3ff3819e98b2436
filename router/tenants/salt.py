"""The cache salt: what keeps one tenant's KV cache blocks apart from another's.

An engine mixes `cache_salt` into the hash of a prompt's first block, so that prompts of different
salts share nothing. A client that could choose or guess a salt could ask by its timing what others
have cached: the router therefore derives it with a secret, and puts it in the place of the
client's own, which is mixed in.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Final

import msgspec

from router.prompt import readable, utf8

_DOMAIN: Final = b"warmroute/cache-salt/v1"
_WHITESPACE: Final = b" \t\r\n"
_CHOSEN_BY_SHARE: Final = 1 << 32
_LONGEST_KEPT: Final = 256
"""Bytes of a client's own salt."""
_MOST_KEPT: Final = 4096


class Salter:
    """Derives salts."""

    def __init__(self, level: str, secrets: Sequence[str], new_share: float = 1.0) -> None:
        """level: tenant, key or user. secrets: the new one, and while it takes over, the old one.
        new_share: of the tenants, how many have the new one already."""
        self._level = level
        self._secrets = [secret.encode() for secret in secrets]
        self._share = new_share if len(secrets) > 1 else 1.0

    def salt(self, tenant: str, user: str, key: str) -> str:
        """The salt of whoever this is, on all routers with these secrets."""
        parts = [tenant]
        if self._level == "key":
            # Who has no key is a user; and a user without a name is his key.
            parts += ("key", key) if key else ("user", user)
        elif self._level == "user":
            parts += ("user", user) if user else ("key", key)
        return derive(self._secret(tenant), parts)

    def public(self, prompt: str) -> str:
        """The salt of conversations with a public system prompt, whoever has them."""
        return derive(self._secret(""), ["", "public", prompt])

    def _secret(self, tenant: str) -> bytes:
        place = int.from_bytes(sha256(_DOMAIN + tenant.encode()).digest()[:4], "big")
        return self._secrets[0 if place < self._share * _CHOSEN_BY_SHARE else -1]


def derive(secret: bytes, parts: Sequence[str]) -> str:
    """base64url(HMAC-SHA256(secret, the parts, each behind its length)): 43 characters."""
    message = [_DOMAIN]
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        message += (len(data).to_bytes(4, "big"), data)
    made = hmac.digest(secret, b"".join(message), "sha256")
    return urlsafe_b64encode(made).rstrip(b"=").decode()


def mixed(salt: str, own: bytes) -> str:
    """A salt with what the client gave mixed in. own: its JSON."""
    # Clients give the same for a whole conversation, or for all; a long one is not kept.
    return _known_mix(salt, own) if len(own) <= _LONGEST_KEPT else _mix(salt, own)


def _mix(salt: str, own: bytes) -> str:
    return derive(salt.encode(), ["own", own.decode("utf-8", "replace")])


_known_mix = lru_cache(maxsize=_MOST_KEPT)(_mix)


class _Body(msgspec.Struct, gc=False):
    cache_salt: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Body).decode
_escaped_name = re.compile(rb"\\u00[5-7]").search


def own_salt(body: bytes) -> bytes:
    """The JSON of the client's own salt; empty where it has none."""
    if b"cache_salt" not in body and (b"\\u00" not in body or not _escaped_name(body)):
        return b""
    own = _own_salt(body)
    if own is None:
        # What only Python takes for JSON, as engines do.
        try:
            own = _own_salt(readable(utf8(body)))
        except UnicodeDecodeError:
            return b""
    return b"" if own is None or own == b"null" else own


def _own_salt(body: bytes) -> bytes | None:
    try:
        return bytes(_decode(body).cache_salt)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class _Part(msgspec.Struct, gc=False):
    text: str = ""


class _Message(msgspec.Struct, gc=False):
    role: str = ""
    content: str | list[_Part] | None = None


class _Conversation(msgspec.Struct, gc=False):
    messages: list[msgspec.Raw] = []
    system: str | list[_Part] | None = None
    instructions: str | None = None


_decode_conversation = msgspec.json.Decoder(_Conversation).decode
_decode_message = msgspec.json.Decoder(_Message).decode


def system_prompt(body: bytes) -> str:
    """What a conversation begins with, of chat, messages or responses; empty for nothing, or for
    what is of another shape."""
    try:
        found = _decode_conversation(body)
        content: str | list[_Part] | None = found.system or found.instructions
        if content is None and found.messages:
            first = _decode_message(found.messages[0])
            content = first.content if first.role in ("system", "developer") else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    if isinstance(content, list):
        return content[0].text if len(content) == 1 else ""
    return content or ""


def with_salt(body: bytes, salt: str) -> bytes | None:
    """The body with this salt. None for a body that is no JSON object."""
    return with_member(body, b'"cache_salt":"%b"' % salt.encode())


def with_member(body: bytes, member: bytes) -> bytes | None:
    """The body with a last member, which wins over others of its name.

    None for a body that is no JSON object. Nothing else of it changes.
    """
    end = len(body) - 1
    while end >= 0 and body[end] in _WHITESPACE:
        end -= 1
    if end < 1 or body[end] != ord("}"):
        return None
    last = end - 1
    while last >= 0 and body[last] in _WHITESPACE:
        last -= 1
    comma = b"" if body[last] == ord("{") else b","
    view = memoryview(body)
    return b"".join((view[:end], comma, member, view[end:]))
