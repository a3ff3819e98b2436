"""What those who talk to Redis need to know of redis-py, without loading it.

It takes a quarter of the router's start, and most routers have no Redis: only `redis_connector`
loads it, where the setting `state` names one.
"""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

Client: TypeAlias = Any
"""Redis or RedisCluster. Their annotations leave open whether replies are bytes or str: here, with
`decode_responses` off, they are bytes."""


def errors() -> tuple[type[Exception], ...]:
    """All that a client raises when Redis is away, unwilling, or elsewhere. For an `except`, which
    asks when something was raised: what is not loaded by then has raised nothing."""
    redis = sys.modules.get("redis.exceptions")
    if redis is None:
        return (OSError,)
    return (redis.RedisError, redis.RedisClusterException, OSError)
