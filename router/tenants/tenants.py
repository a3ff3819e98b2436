"""All that a gateway asks of tenants: who is this, is there room, what was used."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
from array import array
from base64 import urlsafe_b64decode
from typing import TYPE_CHECKING, Final

from router.config import Settings
from router.config.tenancy import REDIS
from router.prompt.spans import SPANS
from router.tenants.accounts import Amounts, Denial, Reservation
from router.tenants.answers import (
    Refusal,
    anthropic_headers,
    forbidden_model,
    leaking_model,
    openai_headers,
    over_limit,
    too_long,
)
from router.tenants.authenticator import Authenticator, TokenVerifier
from router.tenants.counters import Counter
from router.tenants.identity import AuthFailure, Identity
from router.tenants.isolation_guard import IsolationGuard
from router.tenants.key_store import KeyWatcher
from router.tenants.ledger import Ledger, MemoryLedger
from router.tenants.registry import Registry
from router.tenants.salt import Salter, mixed, system_prompt, with_salt
from router.tenants.shared_ledger import SharedLedger
from router.tenants.tenant_file import MAX_FILE_BYTES, Price, TenantFile, parse_tenants
from router.tenants.use import IsolationCost, TenantUse, Use
from router.types import Chain
from router.watched_file import WatchedFile

if TYPE_CHECKING:
    from router.state.redis_connector import RedisConnector

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 0.5
_FIRST_KEYS_S: Final = 5.0
_REMEMBERED_BLOCKS: Final = 500_000
_NO_PRICE: Final = Price()


class Tenants:
    """The room's front. `start`, then `stop`."""

    def __init__(
        self,
        settings: Settings,
        connector: RedisConnector | None,
        router: str,
        counter: Counter | None = None,
    ) -> None:
        """connector: to the Redis of `state`; None without. router: unique among routers. counter:
        where several workers count together without Redis."""
        self.isolates = settings.isolation != "none"
        salter = None
        if self.isolates:
            secrets = [settings.isolation_secret]
            if settings.isolation_old_secret:
                secrets.append(settings.isolation_old_secret)
            salter = Salter(settings.isolation, secrets, settings.isolation_new_share)
        self.registry = Registry(salter)
        self.use = TenantUse()
        self.auth_failures: dict[str, int] = {}
        """Reason -> requests refused with 401."""
        self.file_problem = ""
        self.guard: IsolationGuard | None = None
        """Tries replicas, where caches are to be kept apart."""
        self.cost = IsolationCost(_REMEMBERED_BLOCKS) if self.isolates else None
        self._salt_numbers: dict[str, int] = {}
        self._file: WatchedFile[TenantFile] | None = None
        if settings.tenants and settings.tenants != REDIS:
            self._file = WatchedFile(
                settings.tenants,
                _LOOK_EVERY_S,
                MAX_FILE_BYTES,
                parse_tenants,
                self.registry.adopt_file,
                self._file_trouble,
            )
        self.keys: KeyWatcher | None = None
        self.ledger: Ledger = MemoryLedger()
        if connector is not None:
            self.keys = KeyWatcher(connector, settings.state_prefix, self.registry)
        self.shared_ledger = shared_ledger(settings, router, counter, connector)
        if self.shared_ledger is not None:
            self.ledger = self.shared_ledger
        self._tokens = _verifier(settings, self.registry)
        self.auth = Authenticator(
            self.registry,
            self._tokens,
            [ipaddress.ip_network(each) for each in settings.tenant_proxies],
        )
        self.headers = {
            name.encode(): field
            for name, field in (
                ("authorization", "authorization"),
                ("x-api-key", "api_key"),
                (settings.tenant_header, "tenant"),
                (settings.tenant_user_header, "user"),
            )
            if name
        }
        """Header, in lower case -> its field of `Credentials`."""

    async def start(self) -> None:
        """Read what there is, and follow it."""
        if self._file is not None:
            await self._file.read()
            self._file.start("tenants' file")
        first = []
        if self.keys is not None:
            self.keys.start()
            first.append(self.keys.loaded)
        if self.shared_ledger is not None:
            self.shared_ledger.start()
            first.append(self.shared_ledger.answered)
        try:
            async with asyncio.timeout(_FIRST_KEYS_S):
                for each in first:
                    await each.wait()
        except TimeoutError:
            assert self.shared_ledger is not None  # what Redis has the keys of, it counts too
            who = self.shared_ledger.counter.name
            log.warning("tenants: %s does not answer; its keys and limits are not known yet", who)
        if self._tokens is not None:
            self._tokens.start()
        if self.guard is not None:
            self.guard.start()

    async def stop(self) -> None:
        """Follow no more; tell what was used."""
        for part in (self._file, self.keys, self.shared_ledger, self._tokens, self.guard):
            if part is not None:
                await part.stop()

    @property
    def problem(self) -> str:
        """What does not work as it should; empty for nothing."""
        problems = [self.file_problem]
        if self.shared_ledger is not None:
            problems.append(self.shared_ledger.problem)
        if self.keys is not None:
            problems.append(self.keys.problem)
        if self._tokens is not None:
            problems.append(self._tokens.problem)
        if self.guard is not None:
            problems.append(self.guard.problem)
        return "; ".join(each for each in problems if each)

    # -- for the metrics

    def rows(self) -> list[tuple[str, Use]]:
        """Tenant, or `other`, and its counters."""
        self.use.look()
        return self.use.rows()

    @property
    def shadowed(self) -> dict[str, int]:
        """Name of a limit in shadow -> requests that it would have refused."""
        return self.ledger.shadowed

    @property
    def decided(self) -> dict[str, int]:
        """Where requests with limits were decided -> how many."""
        ledger = self.shared_ledger
        if ledger is None:
            return {}
        return {"lease": ledger.leased, ledger.counter.label: ledger.asked, "alone": ledger.alone}

    @property
    def shared(self) -> bool:
        """Limits are counted together with other routers or workers."""
        return self.shared_ledger is not None and self.shared_ledger.up

    def _file_trouble(self, problem: str) -> None:
        if problem and problem != self.file_problem:
            log.error("tenants: what was read before stays: %s", problem)
        self.file_problem = problem

    # -- a request

    def reserve(
        self, identity: Identity, model: str, prompt_tokens: float, output_tokens: float
    ) -> Reservation | Refusal | asyncio.Future[Reservation | Denial] | None:
        """Admit a request that may need so many tokens. None where it has no limits."""
        accounts = identity.charged(model)
        if not accounts:
            return None
        prompt, output = math.ceil(prompt_tokens), math.ceil(output_tokens)
        money, prices = 0, self.registry.file.prices
        if prices:
            price = prices.get(model, _NO_PRICE)
            money = math.ceil(prompt * price.input + output * price.output)
        decision = self.ledger.reserve(accounts, (1, prompt, output, prompt + output, money, 1))
        if isinstance(decision, Denial):
            return self.refused(identity, decision)
        return decision

    def refused(self, identity: Identity, denial: Denial) -> Refusal:
        """Count a denial, and put it into words."""
        name = denial.over.limit.name if denial.over is not None else "without_redis"
        self.count_refusal(identity, name)
        return over_limit(denial)

    def count_stranger(self, failure: AuthFailure) -> None:
        """A request was refused with 401."""
        failures = self.auth_failures
        failures[failure.reason] = failures.get(failure.reason, 0) + 1

    def count_refusal(self, identity: Identity, reason: str) -> None:
        """A request of a tenant was refused. reason: a limit's name, or another of few words."""
        refused = self.use.of(identity.tenant).refused
        refused[reason] = refused.get(reason, 0) + 1

    def settle(
        self,
        reservation: Reservation | None,
        identity: Identity,
        model: str,
        prompt_tokens: int,
        cached_tokens: int,
        output_tokens: int,
    ) -> None:
        """What a request used. All 0: it reached no engine."""
        use = self.use.saw(identity.tenant, prompt_tokens + output_tokens)
        use.requests += 1
        use.prompt_tokens += prompt_tokens
        use.cached_tokens += cached_tokens
        use.output_tokens += output_tokens
        if reservation is None or reservation.settled:
            return
        file = self.registry.file
        uncached = prompt_tokens - cached_tokens
        weighed = uncached + math.ceil(cached_tokens * file.cached_token_weight)
        money = 0.0
        if file.prices:
            price = file.prices.get(model, _NO_PRICE)
            cached_price = price.input if price.cached_input is None else price.cached_input
            money = uncached * price.input + cached_tokens * cached_price
            money += output_tokens * price.output
        actual: Amounts = (
            reservation.need[0],
            weighed,
            output_tokens,
            weighed + output_tokens,
            math.ceil(money),
            0,
        )
        self.ledger.settle(reservation, actual)

    def check_model(self, identity: Identity, model: str) -> Refusal | None:
        """Whether the model is not for this key."""
        if self.guard is not None and model in self.guard.refused:
            self.count_refusal(identity, "isolation")
            return leaking_model(model)
        if identity.may_use(model):
            return None
        self.count_refusal(identity, "model")
        return forbidden_model(model)

    def check_length(
        self, identity: Identity, prompt_tokens: float, output_limit: int
    ) -> Refusal | None:
        """Whether prompt or answer may be longer than is allowed."""
        longest = identity.max_prompt_tokens
        if 0 < longest < prompt_tokens:
            self.count_refusal(identity, "max_prompt_tokens")
            return too_long("The prompt", math.ceil(prompt_tokens), longest)
        longest = identity.max_output_tokens
        if 0 < longest < output_limit:
            self.count_refusal(identity, "max_output_tokens")
            return too_long("The longest answer asked for", output_limit, longest)
        return None

    def rate_headers(self, identity: Identity, model: str, anthropic: bool) -> bytes:
        """The headers that tell how limits stand, as lines of a head."""
        accounts = identity.charged(model)
        if not accounts:
            return b""
        stands = self.ledger.stands(accounts)
        return anthropic_headers(stands) if anthropic else openai_headers(stands)

    # -- isolation

    def salt_of(self, identity: Identity, body: bytes) -> str:
        """The salt of whoever this is, or that of a public system prompt."""
        public = self.registry.file.public_prompts
        if public and self.registry.salter is not None:
            system = system_prompt(body)
            if system in public:
                return self.registry.salter.public(system)
        return identity.salt

    def salted(self, salt: str, body: bytes, own: bytes) -> bytes | None:
        """The body with a salt. None for a body that is no JSON object.

        own: the JSON of the client's own salt, which is mixed in; empty for none.
        """
        return with_salt(body, mixed(salt, own) if own else salt)

    def apart(self, salt: str, chain: Chain) -> Chain:
        """A prompt's chain as it is with this salt only: the index keeps tenants apart, too."""
        # All of it as one large number: a loop over the blocks would take many times as long.
        raw = chain.tobytes()
        mask = self._number(salt).to_bytes(8, "little") * len(chain)
        mixed_in = int.from_bytes(raw, "little") ^ int.from_bytes(mask, "little")
        return array("Q", mixed_in.to_bytes(len(raw), "little"))

    def count_cost(
        self, identity: Identity, common: Chain, held_tokens: float, tokens: float
    ) -> None:
        """What isolation cost: the part of a prompt that others had sent, and that its own tenant's
        cache did not hold. common: the chain without a salt."""
        if self.cost is None or not common:
            return
        shared = self.cost.saw(common, self._number(identity.salt))
        # Blocks grow with depth: bytes say how much of the prompt they are.
        would = SPANS[shared] / SPANS[len(common)] * tokens
        if would > held_tokens:
            self.use.of(identity.tenant).isolated_tokens += int(would - held_tokens)

    def _number(self, salt: str) -> int:
        number = self._salt_numbers.get(salt)
        if number is None:
            if len(self._salt_numbers) >= 200_000:
                self._salt_numbers.clear()
            # Of the salt's own bits, without its spelling.
            number = int.from_bytes(urlsafe_b64decode(salt + "=")[:8], "big")
            self._salt_numbers[salt] = number
        return number


def shared_ledger(
    settings: Settings, router: str, counter: Counter | None, connector: RedisConnector | None
) -> SharedLedger | None:
    """Counts together with other routers or workers; None where there are none. See Tenants."""
    if connector is not None:
        from router.tenants.redis_counter import RedisCounter  # loads redis-py

        redis = RedisCounter(connector, settings.state_prefix)
        return SharedLedger(redis, router, settings.limits_without_redis)
    if counter is not None:
        return SharedLedger(counter, router, "share", settings.workers)
    return None


def _verifier(settings: Settings, registry: Registry) -> TokenVerifier | None:
    if not settings.jwt_keys:
        return None
    # Its library is an extra: nothing of it is imported when it is off.
    from router.tenants.jwt_verifier import JwtSettings, JwtVerifier

    return JwtVerifier(
        JwtSettings(
            settings.jwt_keys,
            settings.jwt_issuer,
            settings.jwt_audience,
            settings.jwt_tenant_claim,
            settings.jwt_user_claim,
        ),
        registry,
    )
