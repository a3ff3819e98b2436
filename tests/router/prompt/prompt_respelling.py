"""The same JSON in another spelling, as some other client might send it."""

from __future__ import annotations

import random
from typing import Any


def respell(tree: Any, seed: int) -> bytes:
    """JSON with keys in another order, other spaces, other escapes, and keys given twice."""
    return _value(tree, random.Random(seed)).encode()


def _space(rng: random.Random) -> str:
    return rng.choice(("", "", " ", "\n", "\t \r\n"))


def _value(tree: Any, rng: random.Random) -> str:
    match tree:
        case dict():
            items = list(tree.items())
            rng.shuffle(items)
            fields = [(key, _value(value, rng)) for key, value in items]
            if fields and rng.random() < 0.3:  # of two fields of one name the last one counts
                fields.insert(0, (fields[-1][0], rng.choice(("null", "0", '"overruled"', "[[]]"))))
            inner = ",".join(
                f"{_space(rng)}{_string(key, rng)}{_space(rng)}:{_space(rng)}{value}{_space(rng)}"
                for key, value in fields
            )
            return "{" + inner + "}"
        case list():
            inner = ",".join(f"{_space(rng)}{_value(item, rng)}{_space(rng)}" for item in tree)
            return "[" + inner + "]"
        case str():
            return _string(tree, rng)
        case True | False | None:
            return {True: "true", False: "false", None: "null"}[tree]
        case _:
            return repr(tree)


_SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _string(text: str, rng: random.Random) -> str:
    escaping = rng.choice((0.0, 0.05, 1.0))
    out = []
    for char in text:
        if rng.random() < escaping:
            out.append(_long(char, rng))
        elif char in _SHORT:
            out.append(_SHORT[char])
        elif char < " ":
            out.append(_long(char, rng))
        elif char == "/" and rng.random() < 0.5:
            out.append("\\/")
        else:
            out.append(char)
    return '"' + "".join(out) + '"'


def _long(char: str, rng: random.Random) -> str:
    units = char.encode("utf-16-be")
    spelled = "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
    return "".join(rng.choice((c.upper(), c)) if c in "abcdef" else c for c in spelled)
