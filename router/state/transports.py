"""What carries facts, as the settings have it."""

from __future__ import annotations

from router.config import Settings
from router.config.state_url import parse
from router.state.redis_client import RedisConnector
from router.state.redis_transport import RedisTransport


def redis_connector(settings: Settings) -> RedisConnector:
    """Opens clients to the Redis of the setting `state`."""
    return RedisConnector(
        parse(settings.state), settings.state_password, settings.state_ca, "warmroute"
    )


def redis_transport(settings: Settings) -> RedisTransport:
    """Shares through the Redis of the setting `state`."""
    return RedisTransport(redis_connector(settings), settings.state_prefix)
