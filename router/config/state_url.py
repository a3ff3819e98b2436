"""The URL of the setting `state`, taken apart."""

from __future__ import annotations

import re
from urllib.parse import unquote

import msgspec

SCHEMES = ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "unix")
FORM = (
    "redis://host:6379/0, rediss://host:6379, redis+sentinel://host:26379/mymaster, "
    "or unix:///path/of/redis.sock"
)
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?")


class StateURL(msgspec.Struct, frozen=True):
    """Servers to try in turn, and what to say to them."""

    servers: tuple[tuple[str, int], ...]
    """Host and port; of Sentinels where `service` is given. Empty for a unix socket."""
    tls: bool = False
    path: str = ""
    """Of a unix socket."""
    service: str = ""
    """What Sentinel calls the primary."""
    database: int = 0
    user: str = ""


def parse(url: str) -> StateURL:
    """Raises ValueError(what is wrong, the fix); the text never holds what may be a password."""
    scheme, separator, rest = url.strip().partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in SCHEMES:
        raise ValueError("has an unknown scheme", f"give {FORM}")
    if re.search(r"[?#]", rest):
        raise ValueError("has a query or fragment", "remove everything from ? or # on")
    user, at, hosts = rest.rpartition("@")
    if ":" in user or "/" in user:
        raise ValueError(
            "has a password (not shown)",
            "remove it and set WARMROUTE_STATE_PASSWORD, or state_password in the file",
        )
    if at and not user:
        raise ValueError("has an empty user name", "remove the @, or write a user name before it")
    if scheme == "unix":
        if not hosts.startswith("/"):
            raise ValueError("has no absolute path", "write three slashes: unix:///run/redis.sock")
        return StateURL((), path=unquote(hosts), user=unquote(user))
    hosts, _, path = hosts.partition("/")
    sentinel = scheme.endswith("+sentinel")
    servers = tuple(_server(text, 26379 if sentinel else 6379) for text in hosts.split(","))
    service = ""
    if sentinel:
        service, _, path = path.partition("/")
        if not service:
            raise ValueError(
                "does not name the Sentinel service",
                "write it after the Sentinels: redis+sentinel://host:26379/mymaster",
            )
    if path and not re.fullmatch(r"[0-9]{1,5}", path):
        raise ValueError(f"has {path!r} as its database", "give a number, such as /0, or remove it")
    return StateURL(
        servers,
        tls=scheme.startswith("rediss"),
        service=unquote(service),
        database=int(path or 0),
        user=unquote(user),
    )


def _server(text: str, usual: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError(f"has no valid host ({text!r})", f"give {FORM}")
    port = int(found["port"] or usual)
    if not 1 <= port <= 65_535:
        raise ValueError(f"has no valid port ({port})", "give a port from 1 to 65535")
    return found["host"].strip("[]"), port
