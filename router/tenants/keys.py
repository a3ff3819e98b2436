"""Keys of the gateway: how they are made, and what is kept of one.

A key holds 256 random bits, so that its plain SHA-256 tells nothing of it: a slow hash protects
secrets that people choose, and would cost each request what it costs a guesser.
"""

from __future__ import annotations

import secrets
import time
from hashlib import sha256
from typing import Final

import msgspec

PREFIX: Final = "sk-wr-"
MAX_KEY_BYTES: Final = 512
"""A longer one is none of ours, and is not hashed."""
ID_DIGITS: Final = 12
"""Hexadecimal digits of a key's hash that name it in lists, logs and metrics."""


class KeyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a key. The key itself is nowhere."""

    sha256: str
    """Its hash, 64 hexadecimal digits."""
    tenant: str
    name: str = ""
    created: float = 0.0
    """Seconds since 1970."""
    expires: float = 0.0
    """Seconds since 1970; 0 for never."""
    models: tuple[str, ...] = ()
    """The models it may use; none for all that its tenant may."""
    priority: int | None = None
    """The best priority it may ask for, the smallest number; None for its tenant's."""

    @property
    def id(self) -> str:
        """Names the key to people."""
        return self.sha256[:ID_DIGITS]

    def expired(self, now: float) -> bool:
        """Whether its time is over."""
        return 0 < self.expires <= now


def new_key() -> str:
    """A key that nobody can guess."""
    return PREFIX + secrets.token_urlsafe(32)


def key_digest(key: bytes) -> bytes:
    """What a key is looked up by."""
    return sha256(key).digest()


def record_of(
    key: str,
    tenant: str,
    name: str,
    *,
    lifetime_s: float = 0.0,
    models: tuple[str, ...] = (),
    priority: int | None = None,
) -> KeyRecord:
    """What to keep of a new key. lifetime_s: 0 for a key that does not expire."""
    now = time.time()
    return KeyRecord(
        sha256(key.encode()).hexdigest(),
        tenant,
        name,
        round(now, 3),
        round(now + lifetime_s, 3) if lifetime_s else 0.0,
        models,
        priority,
    )
