"""Durations, sizes, shares and booleans as people write them, and back.

What a format function returns, the parse function reads back to the same value. Every parse
function raises ValueError on text it does not understand; its message reads on from "'x' is ...".
"""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?"
_PLAIN = re.compile(_NUMBER)
_PERIOD = re.compile(rf"({_NUMBER})(us|µs|ms|s|min|m|h|d)")
_SIZE = re.compile(rf"({_NUMBER})\s*([a-z]*)")

_SECONDS = {
    "d": Decimal(86_400),
    "h": Decimal(3_600),
    "m": Decimal(60),
    "min": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
    "us": Decimal("0.000001"),
    "µs": Decimal("0.000001"),
}

_BINARY = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
_DECIMAL = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3))
_BYTES = {"": 1, "b": 1}
for _unit, _bytes in _BINARY + _DECIMAL:
    # Both "64KiB" and, as Kubernetes writes it, "64Ki".
    _BYTES[_unit.lower()] = _BYTES[_unit.lower().removesuffix("b")] = _bytes

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


def parse_number(text: str) -> float:
    """A plain number: "2.5", "1e3"."""
    text = text.strip()
    if not _PLAIN.fullmatch(text):
        raise ValueError("not a number")
    return float(text)


def format_number(value: float) -> str:
    """The shortest way to write it that reads back to the same value."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def parse_duration(text: str) -> float:
    """Seconds in "2s", "500ms", "1m30s", "1.5h", or a plain number of seconds."""
    text = text.strip()
    if _PLAIN.fullmatch(text):
        return float(text)
    total, at = Decimal(0), 0
    while at < len(text):
        part = _PERIOD.match(text, at)
        if part is None:
            raise ValueError("not a duration")
        total += Decimal(part[1]) * _SECONDS[part[2]]
        at = part.end()
    if not text:
        raise ValueError("not a duration")
    return float(total)


def format_duration(seconds: float) -> str:
    """The shortest usual way to write it: 90 -> "1m30s", 0.5 -> "500ms", 2.5 -> "2.5s"."""
    exact = Decimal(repr(seconds))
    if seconds >= 60 and exact == int(exact):
        left, parts = int(exact), []
        for unit in ("d", "h", "m", "s"):
            count, left = divmod(left, int(_SECONDS[unit]))
            if count:
                parts.append(f"{count}{unit}")
        return "".join(parts)
    if 0 < seconds < 1:
        for unit in ("ms", "us"):
            count_exact = exact / _SECONDS[unit]
            if count_exact >= 1:
                return f"{_digits(count_exact)}{unit}"
    return f"{_digits(exact)}s"


def parse_size(text: str) -> int:
    """Bytes in "64KiB" or "64Ki" (x 1024), "10MB" or "10M" (x 1000), or a plain number of bytes."""
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None or found[2] not in _BYTES:
        raise ValueError("not a size")
    size = Decimal(found[1]) * _BYTES[found[2]]
    if size != int(size):
        raise ValueError("not a whole number of bytes")
    return int(size)


def format_size(size: int) -> str:
    """The largest unit that divides it: 65536 -> "64KiB", 10_000_000 -> "10MB", 1001 -> "1001B"."""
    for unit, count in _BINARY + _DECIMAL:
        if size and size % count == 0:
            return f"{size // count}{unit}"
    return f"{size}B"


def parse_ratio(text: str) -> float:
    """A share as a number, "0.2", or in percent, "20%"."""
    text = text.strip()
    number = text.removesuffix("%").rstrip() if text.endswith("%") else text
    if not _PLAIN.fullmatch(number):
        raise ValueError("not a share")
    return float(Decimal(number) / 100) if number != text else float(number)


def format_ratio(ratio: float) -> str:
    """The number in plain digits: 0.2 -> "0.2", 1.0 -> "1"."""
    return _digits(Decimal(repr(ratio)))


def parse_flag(text: str) -> bool:
    """true, yes, on or 1; false, no, off or 0; in any case."""
    word = text.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("neither true nor false")


def format_flag(flag: bool) -> str:
    return "true" if flag else "false"


def _digits(number: Decimal) -> str:
    """Plain digits, no exponent, no trailing zeros after the point."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
