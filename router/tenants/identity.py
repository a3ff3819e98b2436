"""Who asks: made once for a key, a user or a tenant, and shared by all of its requests."""

from __future__ import annotations

from typing import Final

import msgspec

from router.tenants.accounts import Account

NO_ACCOUNTS: Final[dict[str, Account]] = {}


class Identity(msgspec.Struct, frozen=True, eq=False):
    """Who asks, and what that allows."""

    tenant: str
    user: str = ""
    key: str = ""
    """The key's id, which is no secret; empty where none was used."""
    priority_cap: int | None = None
    """The best priority it may ask for, the smallest number; None for any."""
    models: frozenset[str] | None = None
    """What it may use; None for every model."""
    must_name_model: bool = False
    """A limit of its depends on the model."""
    expires: float = 0.0
    """When its key does, seconds since 1970; 0 for never."""
    max_prompt_tokens: int = 0
    """0 for any."""
    max_output_tokens: int = 0
    accounts: tuple[Account, ...] = ()
    """What its requests are charged to, whatever their model."""
    model_accounts: dict[str, Account] = NO_ACCOUNTS
    """Model -> what requests for it are charged to besides."""
    salt: str = ""
    """Keeps its prompts' cache apart; empty without isolation."""
    overflow: bool = False
    """Its requests may leave the cluster."""
    overflow_ttft: float | None = None
    """Seconds to the first token, beyond which they do, 0 for none; None: as the setting says."""

    def may_use(self, model: str) -> bool:
        """Whether it may ask for this model."""
        if not model and self.must_name_model:
            return False
        return self.models is None or model in self.models

    def charged(self, model: str) -> tuple[Account, ...]:
        """The accounts that a request for this model is charged to."""
        account = self.model_accounts.get(model) if self.model_accounts else None
        return self.accounts if account is None else (*self.accounts, account)


class AuthFailure(msgspec.Struct, frozen=True):
    """Why a request is nobody's."""

    reason: str
    """A word for metrics: one of REASONS."""
    message: str
    """For the client. Holds nothing that it sent."""


REASONS: Final = ("missing", "malformed", "unknown", "expired", "token", "unverifiable")

MISSING: Final = AuthFailure(
    "missing",
    "No API key was given: send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`.",
)
MALFORMED: Final = AuthFailure("malformed", "The credentials are malformed.")
UNKNOWN: Final = AuthFailure("unknown", "The API key is not valid.")
EXPIRED: Final = AuthFailure("expired", "The API key has expired.")
