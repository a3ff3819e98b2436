"""Checks that take more than one setting, or a look at a file."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from router.config.address import parse_address
from router.config.discovery import check_discovery
from router.config.errors import Fault
from router.config.settings import Settings
from router.config.tenancy import REDIS, check_tenancy

_ANY = frozenset({"0.0.0.0", "::", ""})  # noqa: S104  (compared with, not bound to)
_LOCAL = frozenset({"127.0.0.1", "::1", "localhost"})


class PassphraseError(Exception):
    """The key asks for a passphrase."""


def cross_check(settings: Settings) -> Iterator[Fault]:
    """Everything that single values do not show. Reads the TLS files."""
    s = settings
    if not s.replicas and s.discovery == "off":
        fix = (
            "give at least one: --replica http://vllm-0:8000, or `replicas:` in the file; "
            "or set discovery to find them"
        )
        yield ("replicas",), "there is no replica to route to", fix
    yield from check_discovery(s)
    if s.port and s.port == s.admin_port and _meet(s.host, s.admin_host):
        fix = f"give another port, such as --admin-port {s.port + 1 if s.port < 65_535 else 9090}"
        yield ("port", "admin_port"), f"both are {s.port}", fix
    for name, host, port in (("port", s.host, s.port), ("admin_port", s.admin_host, s.admin_port)):
        for url in s.engines:
            if _is_own(url, host, port):
                wrong = f"{url} is this gateway itself"
                yield ("replicas", name), wrong, f"give the replica's address, or another {name}"
    if s.max_body > s.body_memory:
        wrong = "max_body is larger than body_memory, the limit of all bodies together"
        fix = "raise body_memory, usually to many times max_body, or lower max_body"
        yield ("max_body", "body_memory"), wrong, fix
    if bool(s.tls_cert) != bool(s.tls_key):
        fix = "give both, or neither to serve clients without TLS"
        yield ("tls_cert", "tls_key"), "one is set without the other", fix
    elif s.tls_cert:
        yield from _check_tls_pair(s)
    if s.replica_ca and not s.replica_verify:
        fix = "remove replica_ca, or set replica_verify to true"
        yield ("replica_ca", "replica_verify"), "replica_ca is set and replica_verify is off", fix
    elif s.replica_ca:
        yield from _check_ca("replica_ca", s.replica_ca)
    if s.state_ca:
        yield from _check_ca("state_ca", s.state_ca)
    if s.wake_replicas and not s.hold_timeout:
        wrong = "no request waits for a replica to wake up"
        fix = "set hold_timeout to more than waking takes, such as 2m"
        yield ("wake_replicas", "hold_timeout"), wrong, fix
    yield from check_tenancy(s, s.state)
    if s.tenants and s.tenants != REDIS:
        yield from _unreadable("tenants", s.tenants)
    if s.overflow:
        yield from _unreadable("overflow", s.overflow)


def _meet(a: str, b: str) -> bool:
    """Whether two addresses to listen on cover each other."""
    return a == b or a in _ANY or b in _ANY or (a in _LOCAL and b in _LOCAL)


def _is_own(url: str, host: str, port: int) -> bool:
    """Whether a replica's URL leads back to where the gateway listens, as far as names tell."""
    address = parse_address(url)
    if address.port != port:
        return False
    target = address.host
    return target == host or (target in _LOCAL | _ANY and host in _LOCAL | _ANY)


def _check_tls_pair(settings: Settings) -> Iterator[Fault]:
    pair = (("tls_cert", settings.tls_cert), ("tls_key", settings.tls_key))
    faults = [fault for name, path in pair for fault in _unreadable(name, path)]
    if faults:
        yield from faults
        return
    try:
        server_context(settings.tls_cert, settings.tls_key)
    except PassphraseError:
        yield ("tls_key",), "the key is encrypted", "give a key without a passphrase"
    except (ssl.SSLError, OSError) as error:
        fix = "give a PEM certificate chain and the private key that belongs to it"
        yield ("tls_cert", "tls_key"), f"OpenSSL cannot load them: {_reason(error)}", fix


def _check_ca(name: str, path: str) -> Iterator[Fault]:
    faults = list(_unreadable(name, path))
    if faults:
        yield from faults
        return
    try:
        ssl.create_default_context(cafile=path)
    except (ssl.SSLError, OSError) as error:
        yield (name,), f"OpenSSL cannot load it: {_reason(error)}", "give CA certificates in PEM"


def _unreadable(name: str, path: str) -> Iterator[Fault]:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        wrong = f"{path!r} cannot be read: {error.strerror}"
        yield (name,), wrong, "give a file that can be read"


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or error)


def server_context(cert: str, key: str) -> ssl.SSLContext:
    """The TLS context to serve clients with.

    Raises ssl.SSLError or OSError where the files do not load, PassphraseError for a locked key.
    """

    def refuse_passphrase() -> str:
        # Without this OpenSSL would ask the terminal, and a service would hang.
        raise PassphraseError

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(cert, key, password=refuse_passphrase)
    return context


def replica_context(settings: Settings) -> ssl.SSLContext:
    """The TLS context for `https` replicas: clients' requests and the router's own calls."""
    context = ssl.create_default_context(cafile=settings.replica_ca or None)
    context.set_alpn_protocols(["http/1.1"])
    if not settings.replica_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
