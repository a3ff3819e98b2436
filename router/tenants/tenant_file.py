"""The file of tenants: what each may use, and the keys whose hashes it holds.

cached_token_weight: 0.1          # what a cached prompt token counts for; 1 without it
prices:                           # money for a million tokens, for limits in money
  llama: {input: 0.5, cached_input: 0.05, output: 1.5}
defaults:                         # of each tenant that is not listed, and what one leaves out
  limits: {requests_per_minute: 60}
tenants:
  acme:
    models: [llama]
    priority: 5
    overflow: true                # may be sent to overflow targets, outside of the cluster
    overflow_ttft: 2              # are, where a first token would take longer than these seconds
    limits: {requests_per_minute: 600, tokens_per_day: 20000000, concurrent_requests: 40}
    user_limits: {requests_per_minute: 60}      # of each user
    key_limits: {tokens_per_minute: 100000}     # of each key
    model_limits:
      llama: {output_tokens_per_minute: 50000}
    keys:
      - {name: ci, sha256: 9f86d0..., expires: 2027-01-31}
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import Annotated, Any, Final

import msgspec
import yaml

from router.tenants.accounts import FIELDS, MILLION, MONEY, Limit
from router.tenants.keys import KeyRecord
from router.unreadable_yaml import UNREADABLE_YAML

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_TENANTS: Final = 10_000
MAX_KEYS: Final = 100_000
_Amount = Annotated[int, msgspec.Meta(ge=1, le=1 << 50)]
_Money = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
_Price = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_Prompt = Annotated[str, msgspec.Meta(min_length=1, max_length=1 << 20)]
_sha256 = re.compile(r"(?:sha256:)?([0-9a-f]{64})").fullmatch
_name = re.compile(r"[^\s\x00-\x1f\x7f/{}\"\\]{1,128}").fullmatch
_TWICE: Final = "a name that comes twice"
NAME_FORM: Final = "1 to 128 printable characters without spaces, slashes, quotes and braces"

# C's parser where there is one: some ten times as fast.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """Refuses a name that comes twice: YAML's loaders drop the first, and its keys and limits."""

    def get_single_node(self) -> Any:
        """The document. Raises ConstructorError."""
        root = super().get_single_node()
        # Before merges (`<<`), which may override names.
        waiting, met = [root], set()
        while waiting:
            node = waiting.pop()
            if not isinstance(node, yaml.CollectionNode) or id(node) in met:
                continue
            met.add(id(node))
            if isinstance(node, yaml.SequenceNode):
                waiting += node.value
                continue
            names = set()
            for name, value in node.value:
                if isinstance(name, yaml.ScalarNode):
                    if name.value in names:
                        raise yaml.constructor.ConstructorError(None, None, _TWICE, name.start_mark)
                    names.add(name.value)
                waiting.append(value)
        return root


class LimitSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits as they are written."""

    requests_per_minute: _Amount | None = None
    input_tokens_per_minute: _Amount | None = None
    output_tokens_per_minute: _Amount | None = None
    tokens_per_minute: _Amount | None = None
    concurrent_requests: _Amount | None = None
    tokens_per_day: _Amount | None = None
    tokens_per_month: _Amount | None = None
    money_per_day: _Money | None = None
    money_per_month: _Money | None = None
    max_prompt_tokens: _Amount | None = None
    max_output_tokens: _Amount | None = None
    shadow: bool | tuple[str, ...] = False
    """All of these, or some by name, are counted and told, and refuse nothing."""

    def limits(self) -> tuple[Limit, ...]:
        """What is counted of them."""
        found = []
        for name, (measure, period) in FIELDS.items():
            value = getattr(self, name)
            if value is not None:
                cap = round(value * MILLION) if measure == MONEY else value
                found.append(Limit(name, measure, period, max(cap, 1), self._in_shadow(name)))
        return tuple(found)

    def longest(self, name: str) -> int:
        """max_prompt_tokens or max_output_tokens, as enforced; 0 for any."""
        return 0 if self._in_shadow(name) else getattr(self, name) or 0

    def _in_shadow(self, name: str) -> bool:
        return self.shadow if isinstance(self.shadow, bool) else name in self.shadow


NO_LIMITS: Final = LimitSpec()


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Money for a million tokens."""

    input: _Price = 0.0
    output: _Price = 0.0
    cached_input: _Price | None = None
    """None: as any other input."""


class _KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    name: str = ""
    expires: Any = None
    """A date or a time, as YAML reads them."""
    models: tuple[_Name, ...] = ()
    priority: int | None = None


class TenantSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tenant as it is written."""

    models: tuple[_Name, ...] | None = None
    """None: all."""
    priority: int | None = None
    """The best priority it may ask for: smaller numbers go first, as in vLLM."""
    limits: LimitSpec | None = None
    user_limits: LimitSpec | None = None
    key_limits: LimitSpec | None = None
    model_limits: dict[_Name, LimitSpec] | None = None
    overflow: bool | None = None
    """Its requests may go to overflow targets, outside of the cluster. None: no."""
    overflow_ttft: _Seconds | None = None
    """Seconds to the first token, beyond which they do, 0 for none. None: as the setting says."""
    keys: tuple[_KeyEntry, ...] = ()


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    public_prompts: tuple[_Prompt, ...] = ()
    tenants: dict[str, TenantSpec | None] = {}
    defaults: TenantSpec = TenantSpec()
    prices: dict[_Name, Price] = {}
    cached_token_weight: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0


class TenantFile(msgspec.Struct, frozen=True):
    """What a file says."""

    tenants: dict[str, TenantSpec] = {}
    """With the defaults where a tenant leaves something out."""
    defaults: TenantSpec = TenantSpec()
    keys: dict[str, KeyRecord] = {}
    """By SHA-256."""
    prices: dict[str, Price] = {}
    cached_token_weight: float = 1.0
    public_prompts: frozenset[str] = frozenset()
    """System prompts whose conversations share one cache, whoever has them."""

    def spec(self, tenant: str) -> TenantSpec:
        """What a tenant may; the defaults for one that is not listed."""
        return self.tenants.get(tenant, self.defaults)


EMPTY: Final = TenantFile()


def parse_tenants(text: bytes) -> TenantFile:
    """What a file says. Raises ValueError that says what is wrong and where."""
    try:
        root = yaml.load(text, Loader=_Loader)  # noqa: S506  (a safe loader, C's)
    except UNREADABLE_YAML as error:
        raise ValueError(f"not YAML: {_place(error)}") from None
    if root is None:
        # Half written, or a mount that is not there yet: nobody means it.
        raise ValueError("it is empty; write `tenants: {}` where there are to be none")
    try:
        content = msgspec.convert(root, _Content)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    if len(content.tenants) > MAX_TENANTS:
        raise ValueError(f"more than {MAX_TENANTS} tenants")
    _check_shadows("defaults", content.defaults)
    tenants: dict[str, TenantSpec] = {}
    keys: dict[str, KeyRecord] = {}
    for name, given in content.tenants.items():
        if not is_name(name):
            raise ValueError(f"tenants: {name!r} is no tenant's name; give {NAME_FORM}")
        spec = given or TenantSpec()
        _check_shadows(f"tenants.{name}", spec)
        tenants[name] = _completed(spec, content.defaults)
        for record in _records(name, spec):
            if record.sha256 in keys:
                other = keys[record.sha256]
                raise ValueError(f"tenants.{name}: key {record.id} is also one of {other.tenant}")
            keys[record.sha256] = record
    if len(keys) > MAX_KEYS:
        raise ValueError(f"more than {MAX_KEYS} keys")
    return TenantFile(
        tenants,
        content.defaults,
        keys,
        content.prices,
        content.cached_token_weight,
        frozenset(content.public_prompts),
    )


def is_name(text: str) -> bool:
    """Whether a tenant or a user may be called so."""
    # Without control characters, directions of writing, and halves of surrogate pairs: names are in
    # log lines, labels and Redis.
    return _name(text) is not None and text.isprintable()


def _completed(spec: TenantSpec, defaults: TenantSpec) -> TenantSpec:
    changes = {
        name: getattr(defaults, name)
        for name in (
            "models",
            "priority",
            "limits",
            "user_limits",
            "key_limits",
            "model_limits",
            "overflow",
            "overflow_ttft",
        )
        if getattr(spec, name) is None
    }
    return msgspec.structs.replace(spec, **changes)


def _records(tenant: str, spec: TenantSpec) -> Iterator[KeyRecord]:
    for number, key in enumerate(spec.keys, 1):
        digest = _sha256(key.sha256.strip().lower())
        if digest is None:
            # Not shown: somebody may have put the key itself there.
            raise ValueError(
                f"tenants.{tenant}.keys, entry {number}: sha256 is not 64 hexadecimal digits; "
                "`warmroute keys create` makes a key and its entry"
            )
        yield KeyRecord(
            digest[1], tenant, key.name, 0.0, _end_of(tenant, key), key.models, key.priority
        )


def _end_of(tenant: str, key: _KeyEntry) -> float:
    """Seconds since 1970; 0 for never. What is before 1970 is as long over as can be told."""
    return 0.0 if key.expires is None else max(_written_end(tenant, key.expires), 1.0)


def _written_end(tenant: str, expires: Any) -> float:
    if not isinstance(expires, datetime.date):
        raise ValueError(f"tenants.{tenant}.keys: expires is no date; write it as 2027-01-31")
    if not isinstance(expires, datetime.datetime):
        # Up to the end of that day.
        day = datetime.datetime(expires.year, expires.month, expires.day, tzinfo=datetime.UTC)
        return day.timestamp() + 86_400.0
    if expires.tzinfo is None:
        expires = expires.replace(tzinfo=datetime.UTC)
    moment: float = expires.timestamp()
    return moment


def _check_shadows(where: str, spec: TenantSpec) -> None:
    named = [("limits", spec.limits), ("user_limits", spec.user_limits)]
    named += [("key_limits", spec.key_limits)]
    named += [(f"model_limits.{model}", each) for model, each in (spec.model_limits or {}).items()]
    for model, each in (spec.model_limits or {}).items():
        if each.max_prompt_tokens or each.max_output_tokens:
            # They are known before the model's own account is.
            raise ValueError(f"{where}.model_limits.{model}: max_* belongs into limits")
    for field, limits in named:
        if limits is None or isinstance(limits.shadow, bool):
            continue
        for name in limits.shadow:
            if getattr(limits, name, None) is None or name == "shadow":
                raise ValueError(f"{where}.{field}.shadow: there is no limit {name!r} here")


def _place(error: Exception) -> str:
    """Where it is wrong, without the file's own words, which may be secret."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            what = f"{_TWICE}, " if error.problem == _TWICE else ""
            return f"{what}line {mark.line + 1}, column {mark.column + 1}"
    return "it cannot be parsed"
