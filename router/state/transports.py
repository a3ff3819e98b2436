"""What carries facts, as the settings have it. redis-py is loaded where they have Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.config import Settings
from router.config.state_url import parse
from router.state.redis_transport import RedisTransport

if TYPE_CHECKING:
    from router.state.redis_connector import RedisConnector


def redis_connector(settings: Settings) -> RedisConnector:
    """Opens clients to the Redis of the setting `state`."""
    from router.state.redis_connector import RedisConnector

    return RedisConnector(
        parse(settings.state), settings.state_password, settings.state_ca, "warmroute"
    )


def redis_transport(settings: Settings) -> RedisTransport:
    """Shares through the Redis of the setting `state`."""
    return RedisTransport(redis_connector(settings), settings.state_prefix)
