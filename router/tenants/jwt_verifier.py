"""Tokens of an identity provider (JWT), by the keys that it publishes (JWKS).

The keys are read again now and then, and when a token names one that is not known, so that a
provider may exchange them. While it cannot be reached, the keys known last stay good.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from hashlib import sha256
from typing import Any, Final

import httpx
import jwt
import msgspec

from router.tenants.identity import AuthFailure, Identity
from router.tenants.registry import Registry
from router.tenants.tenant_file import is_name

log = logging.getLogger(__name__)

ALGORITHMS: Final = ["RS256", "ES256"]
MAX_TOKEN_BYTES: Final = 8192
_REFRESH_S: Final = 300.0
_AT_MOST_EVERY_S: Final = 5.0
"""Between two readings that unknown keys ask for."""
_TIMEOUT_S: Final = 5.0
_MAX_JWKS_BYTES: Final = 1 << 20
_LEEWAY_S: Final = 30.0
_MAX_CACHED: Final = 20_000

INVALID: Final = AuthFailure("token", "The token is not valid.")
EXPIRED: Final = AuthFailure("expired", "The token has expired.")
NO_TENANT: Final = AuthFailure("token", "The token names no tenant.")
UNVERIFIABLE: Final = AuthFailure(
    "unverifiable", "The token cannot be verified just now: its issuer's keys are not known."
)


class JwtSettings(msgspec.Struct, frozen=True):
    """What tokens must be."""

    jwks_url: str
    issuer: str = ""
    audience: str = ""
    tenant_claim: str = "tenant"
    user_claim: str = "sub"


class _Verified(msgspec.Struct, frozen=True):
    tenant: str
    user: str
    expires: float


class JwtVerifier:
    """Verifies tokens. The mutable state: the provider's keys, and the tokens verified lately."""

    def __init__(self, settings: JwtSettings, registry: Registry) -> None:
        self._settings = settings
        self._registry = registry
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        self.problem = ""
        """Why the provider's keys could not be read last; empty where they could."""

    def start(self) -> None:
        """Begin to read the provider's keys."""
        self._task = asyncio.create_task(self._refresh_forever(), name="JWKS")

    async def stop(self) -> None:
        """Read no more."""
        for task in (self._task, self._reading):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def verify(self, token: bytes) -> Identity | AuthFailure | None:
        """Whose token this is. None where the provider's keys must be read first: `verify_later`
        does."""
        if len(token) > MAX_TOKEN_BYTES:
            return INVALID
        digest = sha256(token).digest()
        known = self._verified.get(digest)
        if known is not None:
            if known.expires <= time.time():
                del self._verified[digest]
                return EXPIRED
            return self._registry.of_name(known.tenant, known.user)
        try:
            text = token.decode("ascii")
            header = jwt.get_unverified_header(text)
        except (UnicodeDecodeError, jwt.PyJWTError):
            return INVALID
        if header.get("alg") not in ALGORITHMS:
            return INVALID
        key = self._key(header.get("kid"))
        if key is None:
            return None if self._may_read() else INVALID if self._keys else UNVERIFIABLE
        return self._checked(text, key, digest)

    async def verify_later(self, token: bytes) -> Identity | AuthFailure:
        """The same after a look at the provider's keys."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="JWKS, for a new key")
        await asyncio.shield(self._reading)
        return self.verify(token) or (INVALID if self._keys else UNVERIFIABLE)

    def _may_read(self) -> bool:
        if self._reading is not None and not self._reading.done():
            return True
        return time.monotonic() - self._read_at >= _AT_MOST_EVERY_S

    def _key(self, kid: object) -> jwt.PyJWK | None:
        if isinstance(kid, str):
            return self._keys.get(kid)
        # A provider with one key need not name it.
        return next(iter(self._keys.values())) if kid is None and len(self._keys) == 1 else None

    def _checked(self, text: str, key: jwt.PyJWK, digest: bytes) -> Identity | AuthFailure:
        settings = self._settings
        try:
            claims: dict[str, Any] = jwt.decode(
                text,
                key,
                algorithms=ALGORITHMS,
                audience=settings.audience or None,
                issuer=settings.issuer or None,
                leeway=_LEEWAY_S,
                options={"require": ["exp"], "verify_aud": bool(settings.audience)},
            )
            expires = float(claims["exp"]) + _LEEWAY_S
        except jwt.ExpiredSignatureError:
            return EXPIRED
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            return INVALID
        tenant = _claim(claims, settings.tenant_claim)
        user = _claim(claims, settings.user_claim)
        if not is_name(tenant):
            return NO_TENANT
        if user and not is_name(user):
            user = sha256(user.encode("utf-8", "surrogatepass")).hexdigest()
        if len(self._verified) >= _MAX_CACHED:
            self._verified.popitem(last=False)
        self._verified[digest] = _Verified(tenant, user, expires)
        return self._registry.of_name(tenant, user)

    async def _refresh_forever(self) -> None:
        while True:
            await self._read()
            await asyncio.sleep(_REFRESH_S if not self.problem else _AT_MOST_EVERY_S)

    async def _read(self) -> None:
        self._read_at = time.monotonic()
        try:
            keys = await self._fetched()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, jwt.PyJWTError) as error:
            said = f"{self._settings.jwks_url}: {str(error) or type(error).__name__}"
            if not self.problem:
                log.warning("tenants: the keys of tokens cannot be read from %s", said)
            self.problem = said
            return
        if self._keys.keys() - keys.keys():
            # What was signed by a key that was taken back is no good any more.
            self._verified.clear()
        self._keys = keys
        self.problem = ""

    async def _fetched(self) -> dict[str, jwt.PyJWK]:
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
            answer = await client.get(self._settings.jwks_url)
        answer.raise_for_status()
        if len(answer.content) > _MAX_JWKS_BYTES:
            raise ValueError("longer than a set of keys is")
        given = msgspec.json.decode(answer.content, type=dict[str, Any]).get("keys")
        found: dict[str, jwt.PyJWK] = {}
        for number, each in enumerate(given if isinstance(given, list) else ()):
            if not isinstance(each, dict) or each.get("use", "sig") != "sig":
                continue
            try:
                key = jwt.PyJWK(each)
            except jwt.PyJWTError:
                continue  # of a kind that is not for signing, or not known here
            if key.algorithm_name in ALGORITHMS:
                found[str(each.get("kid", number))] = key
        if not found:
            raise ValueError("it holds no key for RS256 or ES256")
        return found


def _claim(claims: dict[str, Any], path: str) -> str:
    """A claim as text; dots lead into objects."""
    value: Any = claims.get(path)
    if value is None:
        value = claims
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
