"""Where replicas come from when they are not listed: Kubernetes, DNS or a file that is watched."""

from router.discovery.discovery import Discovery
from router.discovery.target import DiscoveryError

__all__ = ["Discovery", "DiscoveryError"]
