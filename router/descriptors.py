"""Open files: how many there may be, how many are kept back, and failures that are our own.

A process that runs out of them cannot connect to anybody. That says nothing about whom it wanted to
connect to, so that such a failure must be told apart from a replica's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import Final

_LOCAL: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)

_OWN: Final = 64
"""For the admin port, logs, discovery, shared state, and what the interpreter has open."""
_EACH_REPLICA: Final = 5
"""The router's own reads of a replica, and one connection for requests."""
_MOST_KEPT: Final = 0.5
"""Share of all that is kept back at most, where there are very few."""
_ENDLESS: Final = 1 << 30


def is_local(error: BaseException | None) -> bool:
    """Whether the cause is a lack of this machine's own: files, memory, buffers, or ports."""
    while error is not None:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif isinstance(error, OSError) and error.errno in _LOCAL:
            return True
        else:
            error = error.__cause__ or error.__context__
    return False


def limit() -> int:
    """How many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _ENDLESS if soft == resource.RLIM_INFINITY else soft


def hard_limit() -> int:
    """How many it may have once it has raised the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _ENDLESS if hard == resource.RLIM_INFINITY else hard


def raise_limit() -> int:
    """Take as many as the system grants. Returns how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems refuse a soft limit as high as a hard one without end.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return limit()


def hold_standard() -> None:
    """Have standard input, output and error open, if only to nowhere.

    Where one is closed, the next file or connection would get its number, and what is written to
    the log would go there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def kept_back(replicas: int, most: int) -> int:
    """How many of `most` are not for clients and their requests."""
    return int(min(_OWN + _EACH_REPLICA * replicas, _MOST_KEPT * most))


def clients_allowed(replicas: int, most: int) -> int:
    """How many clients `most` open files are enough for: each may need a connection to a replica
    too."""
    return max(1, (most - kept_back(replicas, most)) // 2)


def limit_warning(max_connections: int, replicas: int) -> str:
    """A warning where open files run out before connections do; empty where they do not."""
    hard = hard_limit()
    allowed = clients_allowed(replicas, hard)
    if allowed >= max_connections:
        return ""
    # One for the client and one for the replica.
    need = 2 * max_connections + kept_back(replicas, hard)
    return (
        f"max_connections={max_connections} may need {need} open files and the limit is "
        f"{hard}, enough for {allowed} clients; beyond them, 503. Raise it (ulimit -Hn, "
        "LimitNOFILE= in systemd) or lower max_connections"
    )
