"""Text for segments: a function of the id, about so many bytes a token, safe inside a JSON
string."""

from __future__ import annotations

from random import Random

_ALPHABET = b"0123456789abcdefghijklmnopqrstuvwxyz"
_POOL_BYTES = 1 << 20
_WORDS = 4096


def _pool() -> bytes:
    random = Random("warmroute text")
    syllables = ("ka", "lo", "mi", "ne", "ru", "sta", "ve", "to", "di", "pra", "en", "or")
    words = ["".join(random.choices(syllables, k=random.randint(1, 4))) for _ in range(_WORDS)]
    made = " ".join(random.choices(words, k=_POOL_BYTES // 4)).encode()[:_POOL_BYTES]
    return made + made


_TEXT = _pool()


def name(number: int) -> bytes:
    """The id in 13 characters, so that different segments differ from their start."""
    digits = bytearray(13)
    for place in range(13):
        number, digit = divmod(number, 36)
        digits[place] = _ALPHABET[digit]
    return bytes(digits)


def text(number: int, size: int) -> bytes:
    """size bytes of words, starting with the id's name. More is always a continuation of less."""
    start = number % _POOL_BYTES
    words = _TEXT[start : start + size]
    while len(words) < size:
        words += _TEXT[start : start + size - len(words)]
    return (name(number) + b" " + words)[:size]
