"""Which keys there are and what each tenant may: from the file, and from Redis.

The mutable state: both sources as they were read last, the identities made of them, and the
accounts, which outlive every reload, since they hold what was used.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable
from typing import Final

from router.tenants.accounts import MONEY, Account
from router.tenants.identity import EXPIRED, NO_ACCOUNTS, UNKNOWN, AuthFailure, Identity
from router.tenants.keys import KeyRecord, key_digest
from router.tenants.salt import Salter
from router.tenants.tenant_file import EMPTY, NO_LIMITS, LimitSpec, TenantFile

MAX_IDENTITIES: Final = 120_000
MAX_ACCOUNTS: Final = 250_000
"""Beyond it the accounts that were used longest ago are forgotten."""


class Registry:
    """Everything known of keys and tenants."""

    def __init__(self, salter: Salter | None) -> None:
        """salter: None without isolation."""
        self.salter = salter
        self.file: TenantFile = EMPTY
        self.redis_keys: dict[bytes, KeyRecord] = {}
        """Those made by `warmroute keys`, by digest."""
        self.accounts: dict[str, Account] = {}
        self._file_keys: dict[bytes, KeyRecord] = {}
        self._by_key: dict[bytes, Identity] = {}
        self._by_name: dict[tuple[str, str], Identity] = {}

    # -- sources

    def adopt_file(self, file: TenantFile) -> None:
        """The file says this now."""
        self.file = file
        self._file_keys = {bytes.fromhex(each): record for each, record in file.keys.items()}
        self._by_key.clear()
        self._by_name.clear()

    def adopt_keys(self, records: Iterable[KeyRecord]) -> None:
        """Redis holds these keys, and no others."""
        self.redis_keys = {bytes.fromhex(record.sha256): record for record in records}
        self._by_key.clear()

    def put_key(self, record: KeyRecord) -> None:
        """A key was made, or changed."""
        digest = bytes.fromhex(record.sha256)
        self.redis_keys[digest] = record
        self._by_key.pop(digest, None)

    def drop_key(self, sha256: str) -> None:
        """A key was revoked."""
        digest = bytes.fromhex(sha256)
        self.redis_keys.pop(digest, None)
        self._by_key.pop(digest, None)

    # -- identities

    def of_key(self, key: bytes) -> Identity | AuthFailure:
        """Whose key this is."""
        digest = key_digest(key)
        identity = self._by_key.get(digest)
        if identity is None:
            record = self._file_keys.get(digest) or self.redis_keys.get(digest)
            # What a look-up's time tells is of a hash, of which nobody can choose the digits. The
            # last word is a comparison in constant time all the same.
            if record is None or not hmac.compare_digest(bytes.fromhex(record.sha256), digest):
                return UNKNOWN
            identity = self._made(record.tenant, "", record)
            if len(self._by_key) >= MAX_IDENTITIES:
                self._by_key.clear()
            self._by_key[digest] = identity
        if identity.expires and identity.expires <= time.time():
            return EXPIRED
        return identity

    def of_name(self, tenant: str, user: str = "") -> Identity:
        """A tenant, or a user of it, whom somebody else vouches for."""
        identity = self._by_name.get((tenant, user))
        if identity is None:
            identity = self._made(tenant, user, None)
            if len(self._by_name) >= MAX_IDENTITIES:
                self._by_name.clear()
            self._by_name[tenant, user] = identity
        return identity

    def _made(self, tenant: str, user: str, record: KeyRecord | None) -> Identity:
        spec = self.file.spec(tenant)
        key = record.id if record is not None else ""
        accounts = [self._account(f"tenant:{tenant}", "tenant", spec.limits)]
        specs = [spec.limits]
        if key:
            accounts.append(self._account(f"key:{tenant}/{key}", "key", spec.key_limits))
            specs.append(spec.key_limits)
        if user:
            accounts.append(self._account(f"user:{tenant}/{user}", "user", spec.user_limits))
            specs.append(spec.user_limits)
        models = None if spec.models is None else frozenset(spec.models)
        priority = spec.priority
        if record is not None:
            if record.models:
                own = frozenset(record.models)
                models = own if models is None else models & own
            if record.priority is not None:
                # Smaller numbers go first: the larger one is what both allow.
                priority = record.priority if priority is None else max(priority, record.priority)
        by_model = {
            model: self._account(f"model:{tenant}/{model}", "model", limits)
            for model, limits in (spec.model_limits or {}).items()
        }
        limited = tuple(account for account in accounts if account.limits)
        priced = bool(self.file.prices) and any(
            limit.measure == MONEY for account in limited for limit in account.limits
        )
        return Identity(
            tenant,
            user,
            key,
            priority,
            models,
            # An engine of one model takes a body that names none: it would be charged to nobody.
            bool(by_model) or priced,
            record.expires if record is not None else 0.0,
            _least(specs, "max_prompt_tokens"),
            _least(specs, "max_output_tokens"),
            limited,
            by_model or NO_ACCOUNTS,
            self.salter.salt(tenant, user, key) if self.salter is not None else "",
            bool(spec.overflow),
            spec.overflow_ttft,
        )

    # -- accounts

    def _account(self, name: str, scope: str, limits: LimitSpec | None) -> Account:
        account = self.accounts.get(name)
        if account is None:
            if len(self.accounts) >= MAX_ACCOUNTS:
                self._forget_accounts()
            account = self.accounts[name] = Account(name, scope, ())
        # Identities are made anew after each reload: so are their accounts' limits.
        account.adopt((limits or NO_LIMITS).limits())
        return account

    def _forget_accounts(self) -> None:
        """Half of them, those that were used longest ago, and nothing that is in use."""
        idle = [each for each in self.accounts.values() if not any(each.held)]
        idle.sort(key=lambda account: account.last_used)
        for account in idle[: len(idle) // 2]:
            del self.accounts[account.name]
        self._by_key.clear()
        self._by_name.clear()


def _least(specs: Iterable[LimitSpec | None], name: str) -> int:
    given = [spec.longest(name) for spec in specs if spec is not None]
    return min((each for each in given if each), default=0)
