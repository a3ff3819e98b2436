"""What each router says of itself in Redis, for the others and for people."""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec


class RouterInfo(msgspec.Struct):
    """What a router says of itself."""

    host: str
    pid: int
    at: float
    """Seconds since 1970, by its clock."""
    started: float
    replicas: int
    blocks: int
    lag: float
    in_flight: int
    routers: int
    """Number of other routers that it hears."""


def alive(info: RouterInfo, within: float) -> bool:
    """Whether a router said so lately, as far as clocks agree."""
    return time.time() - info.at < within


def read_routers(reply: Mapping[bytes, bytes]) -> dict[int, RouterInfo]:
    """The hash of routers as HGETALL answers it; what cannot be read is left out."""
    found: dict[int, RouterInfo] = {}
    for router, info in reply.items():
        try:
            found[int(router, 16)] = msgspec.json.decode(info, type=RouterInfo)
        except (msgspec.DecodeError, ValueError):
            continue
    return found
