"""The settings of tenants: who may ask, how much, and how their caches are kept apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final
from urllib.parse import urlsplit

from router.config.errors import Fault
from router.config.kinds import File, Masked, Networks, Secret, Text, Word, share
from router.config.queueing import QueueSettings
from router.config.serving import TENANTS, SettingInfo

REDIS: Final = "redis"
"""Stands for the keys in Redis, in place of a file."""
MIN_SECRET_CHARACTERS: Final = 16
_HEADER: Final = "a header's name"
_HEADER_FORM: Final = r"|[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_TAKEN: Final = frozenset(
    {"authorization", "x-api-key", "host", "content-length", "content-type", "connection", "via"}
)


class TenantSettings(QueueSettings, frozen=True, kw_only=True):
    """The settings of the group TENANTS."""

    tenants: Annotated[
        str,
        SettingInfo(
            TENANTS,
            File(),
            "Serve only requests with a key: the YAML file of tenants, their keys and limits "
            "([tenants.md](../operate/tenants.md)), read again when it changes; or `redis`, for "
            "keys made with `warmroute keys` alone. With `state` set, a file's tenants have the "
            "keys of Redis too.",
        ),
    ] = ""
    tenant_header: Annotated[
        str,
        SettingInfo(
            TENANTS,
            Text(_HEADER, _HEADER_FORM, lower=True),
            "The header in which a proxy in front names the tenant. It counts from "
            "`tenant_proxies` only, is never sent on, and needs no key.",
        ),
    ] = ""
    tenant_user_header: Annotated[
        str,
        SettingInfo(
            TENANTS,
            Text(_HEADER, _HEADER_FORM, lower=True),
            "The header in which it names the tenant's user, where it does.",
        ),
    ] = ""
    tenant_proxies: Annotated[
        tuple[str, ...],
        SettingInfo(
            TENANTS,
            Networks(),
            "Addresses or networks of the proxies whose `tenant_header` is believed.",
        ),
    ] = ()
    jwt_keys: Annotated[
        str,
        SettingInfo(
            TENANTS,
            Text("an http or https URL", r"|https?://[!-~]+"),
            "Take tokens (JWT; RS256, ES256) as keys: where their issuer publishes its own keys "
            "(JWKS). Needs `pip install '.[jwt]'` in the source folder.",
        ),
    ] = ""
    jwt_issuer: Annotated[
        str,
        SettingInfo(
            TENANTS,
            Text("an issuer's name", r"[!-~]*"),
            "What `iss` of a token must be; empty for anything.",
        ),
    ] = ""
    jwt_audience: Annotated[
        str,
        SettingInfo(
            TENANTS,
            Text("an audience's name", r"[!-~]*"),
            "What `aud` of a token must hold; empty for anything.",
        ),
    ] = ""
    jwt_tenant_claim: Annotated[
        str,
        SettingInfo(
            TENANTS,
            Text("a claim's name", r"[!-~]{1,256}"),
            "The claim that names the tenant; dots lead into objects (`realm.team`).",
        ),
    ] = "tenant"
    jwt_user_claim: Annotated[
        str,
        SettingInfo(
            TENANTS, Text("a claim's name", r"[!-~]{0,256}"), "The claim that names the user."
        ),
    ] = "sub"
    limits_without_redis: Annotated[
        str,
        SettingInfo(
            TENANTS,
            Word(("share", "open", "closed")),
            "How limits are kept while Redis is away. `share`: each router gives its share of "
            "them, the limit divided by the routers heard of last. `open`: there are none. "
            "`closed`: requests that have limits are refused with 503.",
        ),
    ] = "share"
    isolation: Annotated[
        str,
        SettingInfo(
            TENANTS,
            Word(("none", "tenant", "key", "user")),
            "Whose prompts share a KV cache: everyone's, each tenant's, each key's or each user's. "
            "Set apart by a `cache_salt` that the router puts into the body.",
            flag="--isolate",
        ),
    ] = "none"
    isolation_leak: Annotated[
        str,
        SettingInfo(
            TENANTS,
            Word(("refuse", "flag")),
            "With isolation, each replica that joins is tried. A model of which one drops salts is "
            "refused with 503, or only told of in the log and `/readyz`.",
        ),
    ] = "refuse"
    isolation_secret: Annotated[
        str,
        SettingInfo(
            TENANTS,
            Secret(),
            "What salts are derived from, the same on all routers: at least 16 characters that "
            "nobody can guess. No flag: environment or file only.",
        ),
    ] = Masked("")
    isolation_old_secret: Annotated[
        str,
        SettingInfo(
            TENANTS,
            Secret(),
            "The secret before, while tenants move from it to the new one as `isolation_new_share` "
            "grows. No flag: environment or file only.",
        ),
    ] = Masked("")
    isolation_new_share: Annotated[
        float,
        SettingInfo(
            TENANTS,
            share(),
            "With an old secret: the share of tenants that have the new one. A tenant's cache is "
            "cold when it moves.",
        ),
    ] = 1.0

    @property
    def has_tenants(self) -> bool:
        """Requests have to say whose they are."""
        return bool(self.tenants or self.tenant_header or self.jwt_keys)


def check_tenancy(s: TenantSettings, state: str) -> Iterator[Fault]:
    """What is missing, and what does not go together."""
    if s.tenants == REDIS and not state:
        fix = "give state, the Redis that holds the keys; or name a file"
        yield ("tenants", "state"), "tenants is redis, and there is no Redis", fix
    if bool(s.tenant_header) != bool(s.tenant_proxies):
        fix = "give both: the header, and the addresses of the proxies that set it"
        yield ("tenant_header", "tenant_proxies"), "one is set without the other", fix
    if s.tenant_user_header and not s.tenant_header:
        fix = "give tenant_header too"
        yield ("tenant_user_header",), "it is set without tenant_header", fix
    for name in ("tenant_header", "tenant_user_header"):
        if getattr(s, name) in _TAKEN:
            wrong = f"{getattr(s, name)} has another meaning"
            yield (name,), wrong, "give a header of your own, such as x-tenant"
    if s.jwt_keys and not urlsplit(s.jwt_keys).hostname:
        yield ("jwt_keys",), "the URL has no host", "give one like https://id.example/jwks.json"
    for name in ("jwt_issuer", "jwt_audience"):
        if getattr(s, name) and not s.jwt_keys:
            yield (name,), "it is set without jwt_keys", "give jwt_keys, or take it out"
    if s.isolation == "none":
        return
    if not s.has_tenants:
        fix = "give tenants, tenant_header or jwt_keys; or take isolation out"
        yield ("isolation",), "there is nobody to be told apart", fix
    if not s.isolation_secret:
        fix = "set WARMROUTE_ISOLATION_SECRET to what `openssl rand -hex 32` prints, on all routers"
        yield ("isolation", "isolation_secret"), "isolation needs a secret", fix
    for name in ("isolation_secret", "isolation_old_secret"):
        secret = getattr(s, name)
        if secret and len(secret) < MIN_SECRET_CHARACTERS:
            wrong = f"it is shorter than {MIN_SECRET_CHARACTERS} characters"
            yield (name,), wrong, "give what `openssl rand -hex 32` prints"
