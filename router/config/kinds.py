"""What a setting's value may be: text to value, value to text, and the words that describe it.

Flags, the environment and the file all give text, so a value is read the same way from each.
`parse` raises BadValueError. `quote` is how a value given may be shown in a message.
"""

from __future__ import annotations

import ipaddress
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from router.config import units
from router.config.errors import BadValueError
from router.state import address

WEEK = 7 * 86_400.0


class Kind(ABC):
    """One sort of value."""

    placeholder: str
    """What stands for the value in --help."""
    secret = False

    @abstractmethod
    def parse(self, text: str) -> Any: ...

    @abstractmethod
    def describe(self) -> str:
        """What to give, as it reads on from "give "."""

    def brief(self) -> str:
        """The same in few words, for a table."""
        return self.describe()

    def format(self, value: Any) -> str:
        """Text that parse reads back to the same value, or stars for a secret."""
        return str(value)

    def quote(self, text: str) -> str:
        if self.secret:
            return "the value (not shown)"
        return repr(text if len(text) <= 100 else text[:97] + "...")

    def refuse(self, text: str, wrong: str) -> BadValueError:
        return BadValueError((f"{self.quote(text)} is {wrong}", f"give {self.describe()}"))


@dataclass(frozen=True)
class Quantity(Kind):
    """A number with a unit and bounds, both included."""

    placeholder: str
    noun: str
    forms: str
    """How it may be written, in parentheses, or empty."""
    read: Callable[[str], float]
    write: Callable[[Any], str]
    least: float
    most: float

    def parse(self, text: str) -> Any:
        try:
            value = self.read(text)
        except ValueError as error:
            raise self.refuse(text, str(error)) from None
        if not self.least <= value <= self.most:
            low = value < self.least
            side, bound = ("less", self.least) if low else ("more", self.most)
            raise self.refuse(text, f"{side} than {self.write(bound)}")
        return value

    def format(self, value: Any) -> str:
        return self.write(value)

    def describe(self) -> str:
        return f"a {self.noun}{self.forms} from {self.write(self.least)} to {self.write(self.most)}"

    def brief(self) -> str:
        return f"{self.noun}, {self.write(self.least)} to {self.write(self.most)}"


def duration(least: float = 0.001) -> Quantity:
    """Seconds. The least is above 0 unless 0 has a meaning of its own."""
    forms = " (500ms, 2s, 1m30s, or plain seconds)"
    read, write = units.parse_duration, units.format_duration
    return Quantity("DURATION", "duration", forms, read, write, least, WEEK)


def size(least: int, most: int) -> Quantity:
    forms = " (64KiB, 10MB, or plain bytes)"
    return Quantity("SIZE", "size", forms, units.parse_size, units.format_size, least, most)


def share() -> Quantity:
    read, write = units.parse_ratio, units.format_ratio
    return Quantity("SHARE", "share", " (0.2 or 20%)", read, write, 0.0, 1.0)


def whole(least: int, most: int) -> Quantity:
    return Quantity("NUMBER", "whole number", "", _read_whole, str, least, most)


def _read_whole(text: str) -> int:
    # int() alone also reads other scripts' digits, and past 4,300 digits fails in its own words.
    if not re.fullmatch(r"[+-]?[0-9][0-9_]{0,30}", text.strip()):
        raise ValueError("not a whole number")
    return int(text.strip().replace("_", ""))


@dataclass(frozen=True)
class Switch(Kind):
    placeholder = "true|false"

    def parse(self, text: str) -> bool:
        try:
            return units.parse_flag(text)
        except ValueError as error:
            raise self.refuse(text, str(error)) from None

    def format(self, value: Any) -> str:
        return units.format_flag(value)

    def describe(self) -> str:
        return "true or false (also yes, no, on, off, 1, 0)"

    def brief(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Word(Kind):
    """One of a few words."""

    placeholder = "WORD"
    words: tuple[str, ...]

    def parse(self, text: str) -> str:
        word = text.strip().lower()
        if word not in self.words:
            raise self.refuse(text, "not one of the words allowed")
        return word

    def describe(self) -> str:
        return f"{', '.join(self.words[:-1])} or {self.words[-1]}"


@dataclass(frozen=True)
class Text(Kind):
    """Text of a given form."""

    placeholder = "TEXT"
    noun: str
    pattern: str
    lower: bool = False

    def parse(self, text: str) -> str:
        text = text.strip()
        if not re.fullmatch(self.pattern, text):
            raise self.refuse(text, "of another form")
        return text.lower() if self.lower else text

    def describe(self) -> str:
        return self.noun


@dataclass(frozen=True)
class File(Kind):
    """A file's path; empty for none. Whether it can be read is seen once all settings are known."""

    placeholder = "FILE"

    def parse(self, text: str) -> str:
        if "\0" in text:
            raise self.refuse(text, "not a path")
        return text

    def describe(self) -> str:
        return "the path of a file"

    def brief(self) -> str:
        return "path of a file"


class Masked(str):
    """A secret: the text itself wherever it is used, stars where it is only shown by repr()."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'" if self else "''"


@dataclass(frozen=True)
class Secret(Kind):
    """A token that travels in a header. Never shown; has no flag, since `ps` shows those to all."""

    placeholder = "SECRET"
    secret = True

    def parse(self, text: str) -> Masked:
        text = text.strip()
        if not re.fullmatch(r"[!-~]*", text):
            raise self.refuse(text, "not a token that fits into a header")
        return Masked(text)

    def format(self, value: Any) -> str:
        return "***" if value else ""

    def describe(self) -> str:
        return "visible ASCII characters without spaces"

    def brief(self) -> str:
        return "secret text"


@dataclass(frozen=True)
class StateUrl(Kind):
    """Where the shared state is; empty for nowhere."""

    placeholder = "URL"

    def parse(self, text: str) -> str:
        text = text.strip()
        if text:
            try:
                address.parse(text)
            except ValueError as error:
                wrong, fix = error.args
                raise BadValueError((f"the URL {wrong}", fix)) from None
        return text

    def describe(self) -> str:
        return address.FORM

    def brief(self) -> str:
        return "URL"


_HOSTNAME = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*\.?"
)


def _is_host(text: str) -> bool:
    """Whether it is an IPv4 or IPv6 address (without brackets) or could be a host's name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        # Digits and dots that are no address are a mistyped address, not a name.
        return bool(_HOSTNAME.fullmatch(text)) and not re.fullmatch(r"[0-9.]+", text)
    return True


@dataclass(frozen=True)
class Host(Kind):
    """An address to listen on."""

    placeholder = "HOST"

    def parse(self, text: str) -> str:
        host = text.strip()
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if not _is_host(host):
            raise self.refuse(text, "not an address")
        return host

    def describe(self) -> str:
        return "an IP address or host name without a port (127.0.0.1, 0.0.0.0, ::)"

    def brief(self) -> str:
        return "address or host name"


class Names(Kind):
    """Host names, separated by commas or white space, or a star for any."""

    placeholder = "NAME"

    def parse(self, text: str) -> tuple[str, ...]:
        names = tuple(name for name in re.split(r"[,\s]+", text.lower()) if name)
        for name in names:
            if not re.fullmatch(r"[a-z0-9._-]{1,253}|\*", name):
                raise self.refuse(name, "not a host name")
        return names

    def format(self, value: Sequence[str]) -> str:
        return ",".join(value)

    def describe(self) -> str:
        return "host names separated by commas, or *"

    def brief(self) -> str:
        return "list of host names"


@dataclass(frozen=True)
class Replicas(Kind):
    """URLs of replicas, separated by commas or white space, as a tuple in normal form:

    scheme and host in lower case, the scheme's usual port left out, no slash at the end.
    """

    placeholder = "URL"

    def parse(self, text: str) -> tuple[str, ...]:
        if "@" in text:
            # Nothing of the text is shown: a password may hold commas, slashes and question marks.
            fix = "take it out; a key for replicas is the setting replica_api_key"
            raise BadValueError(("a URL has a user name or password (not shown)", fix))
        faults: list[tuple[str, str]] = []
        urls: dict[str, None] = {}
        for item in re.split(r"[,\s]+", text.strip(", \t\r\n")):
            if not item:
                continue
            try:
                url = _normal_url(item)
            except ValueError as error:
                wrong, fix = error.args
                faults.append((f"{self.quote(re.split('[?#]', item)[0])} {wrong}", fix))
                continue
            if url in urls:
                faults.append((f"{url!r} is given twice", "give each replica once"))
            urls[url] = None
        if faults:
            raise BadValueError(*faults)
        return tuple(urls)

    def format(self, value: Sequence[str]) -> str:
        return ",".join(value)

    def describe(self) -> str:
        return "URLs such as http://vllm-0:8000, separated by commas"

    def brief(self) -> str:
        return "list of URLs"


_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[^\]/?#@]*\]|[^:/?#@\[\]]*)(?::(?P<port>[^/?#]*))?(?P<path>/[!-~]*)?",
    re.IGNORECASE,
)


def _normal_url(text: str) -> str:
    """The URL in normal form. Raises ValueError(what is wrong, the fix)."""
    if "://" not in text:
        raise ValueError("has no scheme", "write http:// or https:// before it")
    if re.search(r"[?#]", text):
        raise ValueError("has a query or fragment (not shown)", "leave out what follows ? or #")
    found = _URL.fullmatch(text)
    if found is None:
        raise ValueError("is not a replica's URL", "give one like http://vllm-0:8000")
    host, scheme = found["host"].lower(), found["scheme"].lower()
    if not _is_host(host.strip("[]")) or (":" in host) != host.startswith("["):
        raise ValueError(f"has no valid host ({host!r})", "give one like http://vllm-0:8000")
    port = found["port"]
    if port is not None and not (re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65_535):
        raise ValueError(f"has no valid port ({port!r})", "give a port from 1 to 65535")
    path = (found["path"] or "").rstrip("/")
    if path == "/v1" or path.endswith("/v1"):
        raise ValueError("ends in /v1", f"leave it out: {text.rstrip('/').removesuffix('/v1')}")
    if "//" in path or re.search(r"/\.{1,2}(/|$)", path):
        raise ValueError("has a path that is not in normal form", "take // and dots out of it")
    usual = 443 if scheme == "https" else 80
    shown_port = f":{int(port)}" if port is not None and int(port) != usual else ""
    return f"{scheme}://{host}{shown_port}{path}"
