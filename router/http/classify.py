"""A request target -> the rule for its path."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

import httptools

from router.http.paths import EXTRA, MALFORMED, PARAMETER, PATTERNS, RULES, UNKNOWN, PathRule

# What servers and proxies on the way may read in different ways. A separator that is encoded is
# looked for before decoding.
_malformed = re.compile(rb"[\x00-\x1f\x7f\\]").search
_ENCODED_SEPARATORS = (b"%2f", b"%2F", b"%5c", b"%5C")
_dots = re.compile(rb"/\.{1,2}(?:/|\Z)").search


class Paths:
    """The paths served, of which some are an operator's own."""

    def __init__(self, extra: Iterable[str] = ()) -> None:
        """extra: more paths to balance; one that ends with ``/*`` stands for all below it."""
        self._exact = {path.encode(): rule for path, rule in RULES.items()}
        self._patterns = [(path.encode().split(b"/"), rule) for path, rule in PATTERNS.items()]
        self._below: list[bytes] = []
        for path in extra:
            if path.endswith("/*"):
                self._below.append(path[:-1].encode())
            else:
                self._exact.setdefault(path.encode(), EXTRA)

    def rule(self, target: bytes) -> PathRule:
        """The rule for an origin-form target.

        The path is compared as the engine's server will see it, percent-decoded, so that an
        encoded letter does not open a path that is refused.
        """
        return self._exact.get(target) or self._slow(target)

    def _slow(self, target: bytes) -> PathRule:
        path = target.split(b"?", 1)[0].split(b"#", 1)[0]
        if b"%" in path:
            if any(separator in path for separator in _ENCODED_SEPARATORS):
                return MALFORMED
            path = unquote_to_bytes(path)
        if _malformed(path):
            return MALFORMED
        if len(path) > 1 and path.endswith(b"/"):
            path = path.rstrip(b"/")
        return self._exact.get(path) or self._varying(path)

    def _varying(self, path: bytes) -> PathRule:
        if _dots(path):
            return UNKNOWN
        segments = path.split(b"/")
        for pattern, rule in self._patterns:
            if len(pattern) == len(segments) and all(
                own == PARAMETER.encode() or own == given
                for own, given in zip(pattern, segments, strict=True)
            ):
                return rule
        if any(path.startswith(below) for below in self._below):
            return EXTRA
        return UNKNOWN


def origin_form(target: bytes, method: bytes) -> bytes:
    """An absolute-form target ("GET http://host/path") as path and query; "*" stays for OPTIONS.

    Raises ValueError for what is neither.
    """
    if target == b"*" and method == b"OPTIONS":
        return target
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise ValueError from None
    if not url.host:
        raise ValueError
    path = url.path or b"/"
    return b"%b?%b" % (path, url.query) if url.query else bytes(path)
