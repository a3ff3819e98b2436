"""Settings: what there is to set, read from flags, environment and file, checked all at once."""

from router.config.checks import replica_context, server_context
from router.config.errors import ConfigError, Fault, Problem
from router.config.settings import Settings
from router.config.sources import Loaded, load
from router.config.table import TABLE

__all__ = [
    "TABLE",
    "ConfigError",
    "Fault",
    "Loaded",
    "Problem",
    "Settings",
    "load",
    "replica_context",
    "server_context",
]
