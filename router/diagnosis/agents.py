"""Who asks, and which session a request belongs to, from what clients send without being told to.

The order of names is the one that gateways have agreed on (CLIProxyAPI#4452): the client's own
session headers first, then what the body says. What the body says often names a user or a bucket of
conversations rather than one of them (`Session.weak`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec
import xxhash

SESSION_HEADERS: Final = (
    b"x-claude-code-session-id",
    b"session-id",
    b"session_id",
    b"x-session-id",
    b"x-session-affinity",
)
"""Headers that name a session, the first one found counts. `X-Client-Request-Id`, which others take
too, is left out: most clients name a single request with it."""
SPANNING: Final = 0
"""Place of the one whose sessions span conversations: sub-agents of Claude Code send that of the
agent that started them."""
AGENT_HEADER: Final = b"x-claude-code-agent-id"
"""What tells most of these sub-agents apart. Those that its workflows start send none
(anthropics/claude-code#66761)."""

_AGENT: Final = b"user-agent"
_NAME: Final = re.compile(rb"[A-Za-z][\w.+-]{0,40}(?:/[A-Za-z][\w.+-]{0,20})?")
_MOST_AGENT: Final = 64
"""Bytes of a User-Agent that `_NAME` looks at."""
_MOST_KEY: Final = 256
"""Characters of a key whose name is kept."""
_WITHIN: Final = re.compile(r"session[_\"': -]*([0-9a-f-]{16,64})", re.IGNORECASE)


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Where a request comes from."""

    session: str
    """The session's key; empty where nothing names one."""
    weak: bool
    """The key may stand for several conversations."""
    agent: str
    """The name in its User-Agent, without version; empty without one."""


def origin_of(headers: Sequence[bytes], session: bytes, key: str) -> Origin:
    """headers: name, value, name, ... session: what the headers name. key: what the body
    names (`prompt_cache_key`, `session_id`, `user`, or `metadata.user_id`)."""
    agent = ""
    for at in range(0, len(headers), 2):
        name = headers[at]
        # Nearly all names are longer or shorter.
        if len(name) == len(_AGENT) and name.lower() == _AGENT:
            # What is kept must not be as long as a client likes.
            agent = agent_of(headers[at + 1][:_MOST_AGENT])
            break
    if session:
        return Origin(session.decode("latin-1"), False, agent)
    if key:
        within = _WITHIN.search(key)
        return Origin(within[1], False, agent) if within else Origin(key, True, agent)
    return Origin("", True, agent)


@lru_cache(maxsize=1024)
def agent_of(user_agent: bytes) -> str:
    """The name in a User-Agent: ``claude-cli`` of ``claude-cli/2.1.0 (external, cli)``."""
    found = _NAME.match(user_agent)
    return found[0].decode() if found else ""


def session_name(tenant: str, key: str) -> str:
    """What stands for a session's key everywhere: the queue, the audit, the admin port. A key is
    its tenant's, and a secret of the client's."""
    return (_kept_name if len(key) <= _MOST_KEY else _name)(tenant, key)


def _name(tenant: str, key: str) -> str:
    made: str = xxhash.xxh3_128_hexdigest(f"{tenant}\n{key}".encode("utf-8", "surrogatepass"))
    return made


_kept_name = lru_cache(maxsize=16_384)(_name)
