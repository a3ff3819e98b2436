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

from router.config import state_url, units
from router.config.address import (
    CREDENTIALS_FIX,
    HAS_CREDENTIALS,
    AddressError,
    is_host,
    parse_address,
)
from router.config.errors import BadValueError

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


POLICY_FORM = r"[A-Za-z_]\w*|[A-Za-z_][\w.]*:[A-Za-z_]\w*"
"""A built-in policy's name, or an import path."""


def duration(least: float = 0.001) -> Quantity:
    """Seconds. The least is above 0 unless 0 has a meaning of its own."""
    forms = " (500ms, 2s, 1m30s, or plain seconds)"
    read, write = units.parse_duration, units.format_duration
    return Quantity("DURATION", "duration", forms, read, write, least, WEEK)


def size(least: int, most: int) -> Quantity:
    forms = " (64KiB, 10MB, or plain bytes)"
    return Quantity("SIZE", "size", forms, units.parse_size, units.format_size, least, most)


def price() -> Quantity:
    read, write = units.parse_number, units.format_number
    return Quantity("PRICE", "price", " (in any currency)", read, write, 0.0, 1e6)


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
            raise self.refuse(text, "not in the expected form")
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
        if not text:
            # Taken for "none", it would leave open what somebody meant to lock.
            raise BadValueError(("it is set but empty", "give a value, or remove the setting"))
        if not re.fullmatch(r"[!-~]+", text):
            raise self.refuse(text, "not a token that a header can carry")
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
                state_url.parse(text)
            except ValueError as error:
                wrong, fix = error.args
                raise BadValueError((f"the URL {wrong}", fix)) from None
        return text

    def describe(self) -> str:
        return state_url.FORM

    def brief(self) -> str:
        return "URL"


@dataclass(frozen=True)
class Host(Kind):
    """An address to listen on."""

    placeholder = "HOST"

    def parse(self, text: str) -> str:
        host = text.strip()
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if not is_host(host):
            raise self.refuse(text, "not an IP address or host name")
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
class Policies(Kind):
    """Names or import paths of policies, separated by commas or white space."""

    placeholder = "POLICY"

    def parse(self, text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(name for name in re.split(r"[,\s]+", text) if name))
        for name in names:
            if not re.fullmatch(POLICY_FORM, name):
                raise self.refuse(name, "not the name of a policy")
        return names

    def format(self, value: Sequence[str]) -> str:
        return ",".join(value)

    def describe(self) -> str:
        return "names of policies (round_robin) or module:Class, separated by commas"

    def brief(self) -> str:
        return "list of policies"


@dataclass(frozen=True)
class Networks(Names):
    """Addresses and networks (CIDR), separated by commas or white space, in normal form."""

    placeholder = "NETWORK"

    def parse(self, text: str) -> tuple[str, ...]:
        found = []
        for item in re.split(r"[,\s]+", text):
            if not item:
                continue
            try:
                found.append(str(ipaddress.ip_network(item)))
            except ValueError:
                raise self.refuse(item, "not an address or network") from None
        return tuple(found)

    def describe(self) -> str:
        return "addresses or networks such as 10.1.0.0/16, separated by commas"

    def brief(self) -> str:
        return "list of addresses or networks"


@dataclass(frozen=True)
class Paths(Kind):
    """Paths of requests, separated by commas or white space, each with or without ``/*``."""

    placeholder = "PATH"

    def parse(self, text: str) -> tuple[str, ...]:
        paths = tuple(path for path in re.split(r"[,\s]+", text) if path)
        for path in paths:
            if not re.fullmatch(r"(/[A-Za-z0-9._~!$&'()+:;=@-]+)+(/\*)?", path):
                raise self.refuse(path, "not a path")
            if re.search(r"/\.{1,2}(/|$)", path):
                raise self.refuse(path, "a path with . or .. in it")
        return paths

    def format(self, value: Sequence[str]) -> str:
        return ",".join(value)

    def describe(self) -> str:
        return "paths such as /v1/plugin or /plugin/*, separated by commas"

    def brief(self) -> str:
        return "list of paths"


@dataclass(frozen=True)
class Models(Kind):
    """Names of models, separated by commas or white space."""

    placeholder = "NAME"

    def parse(self, text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(name for name in re.split(r"[,\s]+", text) if name))
        for name in names:
            if len(name) > 256 or not name.isprintable():
                raise self.refuse(name, "not the name of a model")
        return names

    def format(self, value: Sequence[str]) -> str:
        return ",".join(value)

    def describe(self) -> str:
        return "names of models separated by commas"

    def brief(self) -> str:
        return "list of models"


@dataclass(frozen=True)
class Replicas(Kind):
    """URLs of replicas, separated by commas or white space, as a tuple in normal form:

    scheme and host in lower case, the scheme's usual port left out, no slash at the end.
    """

    placeholder = "URL"

    def parse(self, text: str) -> tuple[str, ...]:
        if "@" in text:
            # Nothing of the text is shown: a password may hold commas, slashes and question marks.
            raise BadValueError((f"a URL {HAS_CREDENTIALS}", CREDENTIALS_FIX))
        faults: list[tuple[str, str]] = []
        urls: dict[str, None] = {}
        for item in re.split(r"[,\s]+", text.strip(", \t\r\n")):
            if not item:
                continue
            try:
                url = parse_address(item).url
            except AddressError as error:
                faults.append((f"{self.quote(re.split('[?#]', item)[0])} {error.wrong}", error.fix))
                continue
            if url in urls:
                faults.append((f"{url!r} is listed twice", "list each replica once"))
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
