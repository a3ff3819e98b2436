"""Who sends a request, by what its head holds."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final, Protocol

from router.tenants.identity import MALFORMED, MISSING, AuthFailure, Identity
from router.tenants.keys import MAX_KEY_BYTES
from router.tenants.registry import Registry
from router.tenants.tenant_file import is_name

_MAX_KNOWN_PEERS: Final = 10_000
_BEARER: Final = b"bearer "

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Credentials:
    """The headers of a request that tell who sends it. Never shown, never sent on."""

    __slots__ = ("api_key", "authorization", "tenant", "user")

    def __init__(self) -> None:
        self.authorization = b""
        self.api_key = b""
        self.tenant = b""
        self.user = b""

    def take(self, field: str, value: bytes) -> bool:
        """Keep a header's value. False where it came before."""
        if getattr(self, field):
            return False
        setattr(self, field, value)
        return True


NO_CREDENTIALS: Final = Credentials()


class Peer(Protocol):
    """The other side of a connection."""

    @property
    def peer(self) -> str:
        """Its address; empty where it has none."""


class TokenVerifier(Protocol):
    """Verifies tokens of an identity provider. `start`, then `stop`."""

    problem: str
    """Why the provider's keys could not be read last; empty where they could."""

    def start(self) -> None: ...

    async def stop(self) -> None: ...

    def verify(self, token: bytes) -> Identity | AuthFailure | None:
        """None where it takes `verify_later`."""

    async def verify_later(self, token: bytes) -> Identity | AuthFailure:
        """After a look at the provider's keys."""


class Authenticator:
    """Turns credentials into identities."""

    def __init__(
        self, registry: Registry, tokens: TokenVerifier | None, proxies: Iterable[Network] = ()
    ) -> None:
        """proxies: those whose word on the tenant counts."""
        self._registry = registry
        self._tokens = tokens
        self._proxies = tuple(proxies)
        self._trusted: dict[str, bool] = {}
        """Peers' addresses met lately."""

    def identify(self, given: Credentials, client: Peer) -> Identity | AuthFailure | None:
        """Who this is. None where it takes `identify_later`."""
        # The client's address is a call to the system, so it is asked for only where it matters.
        if given.tenant and self._proxies and self._is_proxy(client.peer):
            return self._vouched(given)
        secret = _secret(given)
        if not secret:
            return MALFORMED if given.authorization else MISSING
        if self._tokens is not None and secret.count(b".") == 2:
            return self._tokens.verify(secret)
        if len(secret) > MAX_KEY_BYTES:
            return MALFORMED
        return self._registry.of_key(secret)

    async def identify_later(self, given: Credentials) -> Identity | AuthFailure:
        """The same, after a look at the keys of the tokens' issuer."""
        assert self._tokens is not None
        return await self._tokens.verify_later(_secret(given))

    def _vouched(self, given: Credentials) -> Identity | AuthFailure:
        try:
            tenant, user = given.tenant.decode("utf-8"), given.user.decode("utf-8")
        except UnicodeDecodeError:
            return MALFORMED
        if not is_name(tenant) or (user and not is_name(user)):
            return MALFORMED
        return self._registry.of_name(tenant, user)

    def _is_proxy(self, peer: str) -> bool:
        known = self._trusted.get(peer)
        if known is None:
            try:
                address = ipaddress.ip_address(peer.partition("%")[0])
            except ValueError:
                return False
            mapped = getattr(address, "ipv4_mapped", None)
            known = any((mapped or address) in network for network in self._proxies)
            if len(self._trusted) >= _MAX_KNOWN_PEERS:
                self._trusted.clear()
            self._trusted[peer] = known
        return known


def _secret(given: Credentials) -> bytes:
    """The key or token."""
    authorization = given.authorization
    if authorization[: len(_BEARER)].lower() == _BEARER:
        return authorization[len(_BEARER) :].strip()
    return given.api_key.strip()
