"""A replica's URL: the one place that takes it apart."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_HOSTNAME = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*\.?"
)
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[^\]/?#@]*\]|[^:/?#@\[\]]*)(?::(?P<port>[^/?#]*))?(?P<path>/[!-~]*)?",
    re.IGNORECASE,
)

HAS_CREDENTIALS = "has a user name or password (not shown)"
CREDENTIALS_FIX = "remove it; to give replicas a key, set replica_api_key"


class AddressError(ValueError):
    """A URL that no replica can have: what is wrong, and the fix."""

    def __init__(self, shown: str, wrong: str, fix: str) -> None:
        super().__init__(f"replica {shown!r} {wrong}: {fix}")
        self.wrong = wrong
        self.fix = fix


@dataclass(slots=True, frozen=True)
class Address:
    """A replica's URL, taken apart once."""

    url: str
    host: str
    """To connect to: no brackets around an IPv6 address."""
    port: int
    tls: bool
    prefix: str
    """Path put before every request's own; empty or "/x", never with a slash at its end."""
    authority: str
    """For the Host header: the port only when it is not the scheme's own."""

    @property
    def name(self) -> str:
        """Stable and unique: host, port, and prefix when there is one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}{self.prefix}"


def is_host(text: str) -> bool:
    """Whether it is an IPv4 or IPv6 address (without brackets) or could be a host's name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        # Digits and dots that are no address are a mistyped address, not a name.
        return bool(_HOSTNAME.fullmatch(text)) and not re.fullmatch(r"[0-9.]+", text)
    return True


def parse_address(text: str) -> Address:
    """Take a replica's base URL apart. Raises AddressError."""
    if "@" in text:
        raise AddressError("...", HAS_CREDENTIALS, CREDENTIALS_FIX)
    if "://" not in text:
        raise AddressError(text, "has no scheme", "write http:// or https:// before it")
    if re.search(r"[?#]", text):
        shown = re.split("[?#]", text)[0]
        wrong, fix = "has a query or fragment (not shown)", "remove everything from ? or # on"
        raise AddressError(shown, wrong, fix)
    found = _URL.fullmatch(text)
    if found is None:
        raise AddressError(text, "is not a replica's URL", "give one like http://vllm-0:8000")
    shown_host, scheme = found["host"].lower(), found["scheme"].lower()
    host = shown_host.strip("[]")
    if not is_host(host) or (":" in host) != shown_host.startswith("["):
        wrong = f"has no valid host ({shown_host!r})"
        raise AddressError(text, wrong, "give one like http://vllm-0:8000")
    given = found["port"]
    if given is not None and not (re.fullmatch(r"[0-9]{1,5}", given) and 1 <= int(given) <= 65_535):
        raise AddressError(text, f"has no valid port ({given!r})", "give a port from 1 to 65535")
    prefix = (found["path"] or "").rstrip("/")
    if prefix.endswith("/v1"):
        fix = f"remove /v1: {text.rstrip('/').removesuffix('/v1')}"
        raise AddressError(text, "ends in /v1", fix)
    if "//" in prefix or re.search(r"/\.{1,2}(/|$)", prefix):
        wrong = "has a path that is not in normal form"
        raise AddressError(text, wrong, "remove //, /./ and /../ from it")
    tls = scheme == "https"
    usual = 443 if tls else 80
    port = usual if given is None else int(given)
    authority = shown_host if port == usual else f"{shown_host}:{port}"
    return Address(
        url=f"{scheme}://{authority}{prefix}",
        host=host,
        port=port,
        tls=tls,
        prefix=prefix,
        authority=authority,
    )
