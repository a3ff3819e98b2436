"""What carries facts, as the settings have it."""

from __future__ import annotations

from router.config import Settings
from router.state.address import parse
from router.state.link import Link
from router.state.redis_transport import RedisCarrier


def redis_link(settings: Settings) -> Link:
    """Raises OSError, ssl.SSLError for a CA that does not load."""
    return Link(parse(settings.state), settings.state_password, settings.state_ca, "warmroute")


def redis_carrier(settings: Settings) -> RedisCarrier:
    """Raises like redis_link."""
    return RedisCarrier(redis_link(settings), settings.state_prefix)
