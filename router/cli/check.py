"""What can be tried before serving: the policy loads, files are enough, the replicas answer."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

import httpx

from router import extras
from router.cli.importing import from_working_directory
from router.config import Fault, Settings, replica_context
from router.config.address import parse_address
from router.config.tenancy import REDIS
from router.doctor.identify import identify

_CALLS_AT_ONCE = 32


class Answer(NamedTuple):
    """What one replica said."""

    url: str
    ok: bool
    said: str


def check_policies(settings: Settings) -> Iterator[Fault]:
    """Why the policy, or a shadow policy, cannot be used."""
    from router.policies import PolicyError, load_policy

    named = ("policy", settings.policy), *(("shadow_policies", n) for n in settings.shadow_policies)
    for setting, name in named:
        from_working_directory(name)
        try:
            load_policy(name)
        except PolicyError as error:
            yield (setting,), str(error), "give a built-in policy's name or module:Class"


def check_exact(settings: Settings) -> Iterator[Fault]:
    """What exact mode's libraries lack, where it is on."""
    if not settings.exact:
        return
    missing = [name for name in ("tokenizers", "jinja2", "zmq") if find_spec(name) is None]
    if missing:
        wrong = f"exact mode needs {', '.join(missing)}, not installed here"
        yield ("exact",), wrong, f"{extras.EXACT}; or set exact to false"


def check_tracing(settings: Settings) -> Iterator[Fault]:
    """What tracing's libraries lack, where it is on."""
    if not settings.tracing:
        return
    # The parent package alone may be there.
    if not find_spec("opentelemetry") or not find_spec("opentelemetry.sdk"):
        wrong = "tracing needs OpenTelemetry's SDK, which is not installed"
        yield ("tracing",), wrong, f"{extras.OTEL}; or set tracing to false"
        return
    from router.tracing.exporter import make_exporter

    try:
        make_exporter().shutdown()
    except (ImportError, ValueError) as error:
        yield ("tracing",), str(error), f"{extras.OTEL}; or mend the variable"


def check_tenants(settings: Settings) -> Iterator[Fault]:
    """What is wrong with the file of tenants, and what the library for tokens lacks."""
    if settings.jwt_keys and find_spec("jwt") is None:
        wrong = "it needs PyJWT, which is not installed"
        yield ("jwt_keys",), wrong, f"{extras.JWT}; or leave jwt_keys out"
    if settings.tenants in ("", REDIS):
        return
    from router.tenants.tenant_file import parse_tenants

    try:
        with open(settings.tenants, "rb") as file:
            text = file.read()
    except OSError:
        return  # told by the settings' own checks
    try:
        parse_tenants(text)
    except ValueError as error:
        wrong = f"{settings.tenants}: {error}"
        yield ("tenants",), wrong, "mend the file; docs/operate/tenants.md has its form"


def check_overflow(settings: Settings) -> Iterator[Fault]:
    """What is wrong with the file of overflow targets, or with their keys."""
    if not settings.overflow:
        return
    from router.overflow.overflow_file import read_targets

    try:
        read_targets(settings.overflow)
    except OSError:
        return  # told by the settings' own checks
    except ValueError as error:
        wrong = f"{settings.overflow}: {error}"
        yield ("overflow",), wrong, "mend the file; docs/operate/overflow.md has its form"


def check_all(settings: Settings) -> Iterator[Fault]:
    """Everything that takes more than the settings to know."""
    yield from check_policies(settings)
    yield from check_exact(settings)
    yield from check_tracing(settings)
    yield from check_tenants(settings)
    yield from check_overflow(settings)


def check_picker(settings: Settings) -> Iterator[Fault]:
    """What else keeps a picker from its work: libraries, and what only a proxy can do."""
    yield from check_all(settings)
    missing = [name for name in ("hpack", "google.protobuf") if not _there(name)]
    if missing:
        wrong = f"the picker needs {', '.join(missing)}, not installed here"
        yield (), wrong, extras.PICKER
    fix = "leave it out, or run `warmroute serve`, a proxy, which sees every answer"
    for name in ("tenants", "tenant_header", "jwt_keys"):
        if getattr(settings, name):
            yield (name,), "a picker keeps no tenants: it does not see every answer", fix
    if settings.overflow:
        yield ("overflow",), "a picker sends no requests itself", fix
    if settings.isolation != "none":
        yield ("isolation",), "a picker cannot keep tenants' caches apart", fix
    for url in settings.replicas:
        yield from _check_endpoint(url)


def _check_endpoint(url: str) -> Iterator[Fault]:
    address = parse_address(url)
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        fix = "give its IP address, or set discovery to dns, which looks names up"
        yield ("replicas",), f"{url}: a data plane is told ip:port, not a name", fix
    if address.prefix:
        wrong = f"{url}: a data plane is told ip:port, and no path before a request's own"
        yield ("replicas",), wrong, "leave the path out"


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


async def ask_replicas(settings: Settings) -> list[Answer]:
    """Ask every replica what it is. The answers are in the order of the settings."""
    key = settings.replica_api_key
    headers = {"authorization": f"Bearer {key}"} if key else {}
    slots = asyncio.Semaphore(_CALLS_AT_ONCE)
    async with httpx.AsyncClient(
        headers=headers,
        timeout=settings.health_timeout,
        verify=replica_context(settings),
        trust_env=False,
    ) as client:

        async def ask(url: str) -> Answer:
            async with slots:
                return await _ask(client, url)

        return list(await asyncio.gather(*map(ask, settings.engines)))


async def _ask(client: httpx.AsyncClient, url: str) -> Answer:
    identity = await identify(client, url)
    if identity.trouble:
        return Answer(url, False, f"{identity.trouble}; {identity.fix}")
    names = ", ".join(card["id"] for card in identity.cards)
    title = f"{identity.kind.title}, " if identity.kind.name else ""
    return Answer(url, True, f"healthy, {title}serves {names or 'no model'}")
