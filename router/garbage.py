"""When Python's collector of cyclic garbage looks, and at what: a look holds the event loop.

A request leaves no cycle behind (tests/router/http/test_http_garbage.py holds that), so that what
the collector finds comes from libraries and from failures, and is little. Its looks cost all the
same, by the number of objects that live: an open stream has about 45. So it looks often at the few
objects that are new, which is where most of such garbage is, and at all of them only while no
request would wait for it.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from time import monotonic
from typing import Final

_NEW_OBJECTS: Final = 2_000
"""A look at so many takes 0.3 ms. At 50,000 it took 8 to 42 ms, and the same CPU in all."""
_NEVER: Final = 1 << 30
_INTERVAL_S: Final = 30.0
_EARLIEST_S: Final = 600.0
"""Seconds between two looks at all objects: a request that comes meanwhile waits."""
_LATEST_S: Final = 3600.0
"""Seconds after which all objects are looked at though requests are in progress."""
_GROWTH: Final = 10
"""Looks at new objects after which a look at all of them may find something."""


def settle() -> None:
    """The program has started: what is alive now stays, and is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, _NEVER, _NEVER)


async def collect_at_rest(busy: Callable[[], bool]) -> None:
    """Look at all objects now and then, until cancelled; not while it is busy, for an hour."""
    last = monotonic()
    while True:
        await asyncio.sleep(_INTERVAL_S)
        since = monotonic() - last
        if since < _EARLIEST_S or gc.get_count()[1] < _GROWTH:
            continue
        if since >= _LATEST_S or not busy():
            gc.collect()
            last = monotonic()
