"""Values on the command line: read, within their bounds, or refused with what to write."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import TypeVar

from router.config.units import parse_duration

_T = TypeVar("_T")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class OptionsError(ValueError):
    """Options that do not go together, or a value that cannot be read."""


def seconds(text: str) -> float:
    """A duration: "60s", "10m", or plain seconds."""
    try:
        return parse_duration(text)
    except ValueError as error:
        why = f"{error}: write it like 60s, 10m, or plain seconds"
        raise argparse.ArgumentTypeError(why) from None


def period(text: str) -> float:
    """A duration above 0."""
    found = seconds(text)
    if found <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: must be above 0")
    return found


def count(least: int = 1) -> Callable[[str], int]:
    """A reader of whole numbers from least on."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: write a whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r}: must be at least {least}")
        return number

    return read


def positive(text: str) -> float:
    """A number above 0."""
    number = _finite(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: must be above 0")
    return number


def not_negative(text: str) -> float:
    """A number from 0 on."""
    number = _finite(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: must not be negative")
    return number


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number") from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r}: write a number that is finite")
    return number


def positives(text: str, option: str) -> list[float]:
    """Numbers above 0 with commas between them, each a different one. Raises OptionsError."""
    return _several(text, option, positive)


def amounts(text: str, option: str) -> list[float]:
    """Numbers from 0 on with commas between them, each a different one. Raises OptionsError."""
    return _several(text, option, lambda part: 0.0 if part.strip() == "0" else positive(part))


def counts(text: str, option: str) -> list[int]:
    """Whole numbers from 1 on with commas between them, each a different one. Raises
    OptionsError."""
    return _several(text, option, count())


def _several(text: str, option: str, read: Callable[[str], _T]) -> list[_T]:
    try:
        found = [read(part) for part in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise OptionsError(
            f"{option} {text!r}: {error}; several have commas between them"
        ) from None
    if len(set(found)) != len(found):
        raise OptionsError(f"{option} {text!r}: each must be a different one")
    return found


def names(text: str, option: str) -> list[str]:
    """Names with commas between them, at least one, each a different one. Raises OptionsError."""
    found = [part.strip() for part in text.split(",")]
    if not all(found) or len(set(found)) != len(found):
        raise OptionsError(f"{option} {text!r}: write names with commas, each a different one")
    return found


def header(name: str, value: str) -> tuple[str, str]:
    """A header that can be sent. Raises OptionsError, which does not tell its value: it may be a
    key."""
    if not _HEADER_NAME.fullmatch(name):
        raise OptionsError(f"--header {name!r}: this is not the name of a header")
    if not _HEADER_VALUE.fullmatch(value):
        raise OptionsError(
            f"--header {name}: its value has a line break or another character that headers "
            "cannot carry"
        )
    return name, value


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."
