"""`warmroute keys` and `warmroute tenants`: make, list and revoke keys; show what tenants may and
use."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from router.cli.flags import add_few, load_few
from router.config import Settings
from router.config.tenancy import REDIS
from router.config.units import parse_duration
from router.state.redis_client import Client, errors
from router.state.transports import redis_connector
from router.tenants.accounts import DAY, MEASURES, MINUTE, NOW, SLOTS, Limit, month_of
from router.tenants.answers import shown
from router.tenants.counters import account_key
from router.tenants.key_store import KeyNames, KeyStore
from router.tenants.keys import KeyRecord, new_key, record_of
from router.tenants.tenant_file import (
    EMPTY,
    NAME_FORM,
    NO_LIMITS,
    TenantFile,
    is_name,
    parse_tenants,
)

OK, FAILED = 0, 1
_TIMEOUT_S: Final = 5.0
_SETTINGS: Final = ("state", "state_prefix", "state_ca", "tenants")
_DAY_S: Final = 86_400.0


class KeyRow(msgspec.Struct):
    """A key as `keys list` shows it."""

    id: str
    tenant: str
    name: str
    created: str
    expires: str
    models: tuple[str, ...]
    kept: str
    """redis or file."""


class LimitRow(msgspec.Struct):
    """A limit and what counts against it."""

    name: str
    cap: str
    used: str
    """Empty where no Redis was asked."""
    shadow: bool


class TenantRow(msgspec.Struct):
    """A tenant as `tenants show` shows it."""

    name: str
    models: tuple[str, ...] | None
    keys: int
    limits: list[LimitRow]


def add(commands: Any) -> None:
    """Add the commands. commands: what argparse's add_subparsers returned."""
    keys = commands.add_parser(
        "keys",
        help="make, list and revoke clients' keys",
        usage="%(prog)s create --tenant NAME [--name TEXT] [--expires 90d] [--models A,B] | list | "
        "revoke ID  [--state URL] [--tenants FILE] [--config FILE]",
        description="Keys are kept in Redis (state) as hashes. Without Redis, create prints the "
        "entry for the file of tenants. A key is shown once.",
    )
    keys.add_argument(
        "action", choices=("create", "list", "revoke"), metavar="{create,list,revoke}"
    )
    keys.add_argument("id", nargs="?", default="", help="of the key to revoke, as list shows it")
    keys.add_argument("--tenant", metavar="NAME", default="", help="whose key it is")
    keys.add_argument("--name", metavar="TEXT", default="", help="what it is for")
    keys.add_argument("--expires", metavar="DURATION", default="", help="after how long: 90d, 12h")
    keys.add_argument("--models", metavar="NAMES", default="", help="the only models it may use")
    keys.add_argument(
        "--priority",
        metavar="NUMBER",
        type=int,
        help="the best it may ask for: the smallest number",
    )
    tenants = commands.add_parser(
        "tenants",
        help="show what tenants may and use",
        usage="%(prog)s show [NAME] [--state URL] [--tenants FILE] [--config FILE]",
        description="Show the tenants, their keys, limits, and what counts against them.",
    )
    tenants.add_argument("action", choices=("show",), metavar="show")
    tenants.add_argument("id", nargs="?", default="", help="the tenant's name; all without it")
    for command in (keys, tenants):
        command.add_argument("--json", action="store_true", help="for programs")
        add_few(command, _SETTINGS)


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit status. Raises ConfigError for settings that are wrong."""
    settings = load_few(parsed, _SETTINGS)
    actions: dict[tuple[str, str], Callable[..., Awaitable[int]]] = {
        ("keys", "create"): _create,
        ("keys", "list"): _list,
        ("keys", "revoke"): _revoke,
        ("tenants", "show"): _show,
    }
    try:
        return asyncio.run(_with_redis(settings, parsed, actions[parsed.command, parsed.action]))
    except errors() as error:
        return _fail(f"{settings.state}: {error}")
    except ValueError as error:
        return _fail(str(error))


async def _with_redis(
    settings: Settings, parsed: argparse.Namespace, action: Callable[..., Awaitable[int]]
) -> int:
    if not settings.state:
        return await action(settings, parsed, None)
    names = KeyNames(settings.state_prefix)
    client = await redis_connector(settings).open(names.keys, _TIMEOUT_S)
    try:
        return await action(settings, parsed, client)
    finally:
        await client.aclose()


def _fail(why: str) -> int:
    print(f"warmroute: {why}", file=sys.stderr)
    return FAILED


def _tenant_file(settings: Settings) -> TenantFile:
    if settings.tenants in ("", REDIS):
        return EMPTY
    return parse_tenants(Path(settings.tenants).read_bytes())


async def _create(settings: Settings, parsed: argparse.Namespace, client: Client | None) -> int:
    if not is_name(parsed.tenant):
        return _fail(f"whose key? --tenant NAME, of {NAME_FORM}")
    lifetime = _lifetime(parsed.expires)
    models = tuple(each for each in parsed.models.replace(",", " ").split() if each)
    key = new_key()
    record = record_of(
        key,
        parsed.tenant,
        parsed.name,
        lifetime_s=lifetime,
        models=models,
        priority=parsed.priority,
    )
    if client is not None:
        await KeyStore(client, settings.state_prefix).put(record)
    if parsed.json:
        print(msgspec.json.encode({"id": record.id, "key": key}).decode())
        return OK
    print(key)
    print(f"The key {record.id} of {record.tenant}. It is shown this once.", file=sys.stderr)
    if client is None:
        entry = [f"name: {_quoted(record.name)}", f"sha256: {record.sha256}"]
        if record.expires:
            entry.append(f"expires: {_time(record.expires)}")
        if models:
            entry.append(f"models: [{', '.join(map(_quoted, models))}]")
        if record.priority is not None:
            entry.append(f"priority: {record.priority}")
        print(
            f"No state is set: put this into the file of tenants, under tenants, "
            f"{record.tenant}, keys:\n- {{{', '.join(entry)}}}",
            file=sys.stderr,
        )
    return OK


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _lifetime(text: str) -> float:
    """Seconds; days too, which settings do not have."""
    if not text:
        return 0.0
    days = text.removesuffix("d")
    if text.endswith("d") and days.isascii() and days.isdigit():
        seconds = int(days) * _DAY_S
    else:
        seconds = parse_duration(text)
    if not 0 < seconds <= 100 * 366 * _DAY_S:
        raise ValueError(f"{text!r} is no time to live; give one like 90d or 12h")
    return seconds


async def _all_keys(settings: Settings, client: Client | None) -> list[tuple[KeyRecord, str]]:
    found = [(record, "file") for record in _tenant_file(settings).keys.values()]
    if client is not None:
        found += [(each, "redis") for each in await KeyStore(client, settings.state_prefix).all()]
    return found


async def _list(settings: Settings, parsed: argparse.Namespace, client: Client | None) -> int:
    rows = [
        KeyRow(
            record.id,
            record.tenant,
            record.name,
            _time(record.created) if record.created else "",
            _time(record.expires) if record.expires else "never",
            record.models,
            kept,
        )
        for record, kept in await _all_keys(settings, client)
        if parsed.tenant in ("", record.tenant)
    ]
    if parsed.json:
        print(msgspec.json.format(msgspec.json.encode(rows)).decode())
        return OK
    line = "{:<14}{:<20}{:<20}{:<22}{:<22}{:<7}{}"
    print(line.format("key", "tenant", "name", "made", "expires", "kept", "models"))
    for row in rows:
        models = ", ".join(row.models) or "all"
        print(
            line.format(
                row.id, row.tenant, row.name, row.created, row.expires, row.kept, models
            ).rstrip()
        )
    return OK


async def _revoke(settings: Settings, parsed: argparse.Namespace, client: Client | None) -> int:
    if not parsed.id:
        return _fail("revoke which key? its id, as `warmroute keys list` shows it")
    matching = [
        (record, kept)
        for record, kept in await _all_keys(settings, client)
        if record.sha256.startswith(parsed.id.lower()) or (record.name and record.name == parsed.id)
    ]
    if len(matching) != 1:
        many = "more than one key is" if matching else "no key is"
        return _fail(f"{many} called {parsed.id!r}; `warmroute keys list` shows them")
    record, kept = matching[0]
    if kept == "file" or client is None:
        return _fail(f"{record.id} is in {settings.tenants}: take its entry out there")
    await KeyStore(client, settings.state_prefix).revoke(record)
    print(f"{record.id} of {record.tenant} is revoked")
    return OK


async def _show(settings: Settings, parsed: argparse.Namespace, client: Client | None) -> int:
    file = _tenant_file(settings)
    keys: dict[str, int] = {}
    for record, _ in await _all_keys(settings, client):
        keys[record.tenant] = keys.get(record.tenant, 0) + 1
    names = sorted(file.tenants.keys() | keys.keys())
    if parsed.id:
        names = [name for name in names if name == parsed.id]
        if not names:
            return _fail(f"there is no tenant {parsed.id!r}")
    rows = []
    for name in names:
        spec = file.spec(name)
        limits = (spec.limits or NO_LIMITS).limits()
        used: list[str] = [""] * len(limits)
        if client is not None and limits:
            fields = await client.hgetall(account_key(settings.state_prefix, f"tenant:{name}"))
            amounts = used_of(fields, limits, time.time())
            used = [shown(limit.measure, each) for limit, each in zip(limits, amounts, strict=True)]
        rows.append(
            TenantRow(
                name,
                spec.models,
                keys.get(name, 0),
                [
                    LimitRow(limit.name, shown(limit.measure, limit.cap), each, limit.shadow)
                    for limit, each in zip(limits, used, strict=True)
                ],
            )
        )
    if parsed.json:
        print(msgspec.json.format(msgspec.json.encode(rows)).decode())
        return OK
    for row in rows:
        models = "all models" if row.models is None else ", ".join(row.models) or "no model"
        print(f"{row.name}: {row.keys} key{'s'[: row.keys != 1]}, {models}")
        for limit in row.limits:
            told = f"{limit.used} of {limit.cap}" if limit.used else limit.cap
            print(f"  {limit.name:<26}{told}{'  (shadow)' if limit.shadow else ''}")
    return OK


def used_of(fields: dict[bytes, bytes], limits: Sequence[Limit], now: float) -> list[int]:
    """What counts against limits, as an account's hash has it (tenants/limits_script.py)."""
    minute, held, days, months = ([0] * MEASURES for _ in range(4))
    second, day, month = int(now), int(now) // 86_400, month_of(now)
    for field, value in fields.items():
        letter, measure, rest = field[:1], int(field[1:2]), field[3:]
        amount = int(value)
        if letter == b"m" and int(rest) > second - SLOTS:
            minute[measure] += amount
        elif letter == b"h":
            held[measure] += amount
        elif letter == b"d" and int(rest) == day:
            days[measure] += amount
        elif letter == b"n" and int(rest) == month:
            months[measure] += amount
    found = []
    for limit in limits:
        measure = limit.measure
        if limit.period == MINUTE:
            found.append(minute[measure])
        elif limit.period == NOW:
            found.append(held[measure])
        else:
            found.append((days if limit.period == DAY else months)[measure] + held[measure])
    return found


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
