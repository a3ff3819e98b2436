"""A request target -> the rule for its path."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import httptools

from router.http.paths import KEPT, KEPT_BELOW, OTHER, RULES, PathRule

_BY_TARGET = {path.encode(): rule for path, rule in RULES.items()}


def classify(target: bytes) -> PathRule:
    """The rule for an origin-form target.

    The path is compared as the engine's server will see it, percent-decoded, so that an encoded
    letter does not open a path that is refused.
    """
    rule = _BY_TARGET.get(target)
    if rule is not None:
        return rule
    path = target.split(b"?", 1)[0].split(b"#", 1)[0]
    if b"%" in path:
        path = unquote_to_bytes(path)
    if len(path) > 1 and path.endswith(b"/"):
        path = path.rstrip(b"/")
    if path.startswith(KEPT_BELOW):
        return KEPT
    return _BY_TARGET.get(path, OTHER)


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
