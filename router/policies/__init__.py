"""Routing policies: pure functions of one request, what is held where, and the load. One file a
policy."""

from router.policies.registry import BUILT_IN, PolicyError, load_policy

__all__ = ["BUILT_IN", "PolicyError", "load_policy"]
