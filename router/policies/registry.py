"""Finds policies by name, or by the import path of your own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from router.policies.cache_aware import CacheAware
from router.policies.consistent_hash import ConsistentHash
from router.policies.least_loaded import LeastLoaded
from router.policies.power_of_two import PowerOfTwo
from router.policies.random_choice import RandomChoice
from router.policies.round_robin import RoundRobin
from router.policies.session import Session
from router.types import Policy

BUILT_IN: dict[str, Callable[..., Policy]] = {
    "cache_aware": CacheAware,
    "consistent_hash": ConsistentHash,
    "least_loaded": LeastLoaded,
    "power_of_two": PowerOfTwo,
    "random": RandomChoice,
    "round_robin": RoundRobin,
    "session": Session,
}


class PolicyError(ValueError):
    """The setting `policy` or its options cannot be used; the message says why and what to do."""


def load_policy(name: str, **options: Any) -> Policy:
    """A policy by a built-in name or an import path, "package.module:Class".

    `options` go to its constructor. Raises PolicyError.
    """
    make = BUILT_IN.get(name)
    if make is None:
        make = _imported(name)
    try:
        policy = make(**options)
    except (TypeError, ValueError) as error:
        raise PolicyError(
            f"policy '{name}' does not take the options {options or '{}'}: {error}; "
            "see docs/design/policies.md"
        ) from error
    for method in ("choose", "members"):
        if not callable(getattr(policy, method, None)):
            raise PolicyError(
                f"policy '{name}' has no {method} method; a policy needs choose(ask, loads) and "
                "members(names), see docs/design/policies.md"
            )
    return policy


def _imported(name: str) -> Callable[..., Policy]:
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise PolicyError(
            f"policy '{name}' is not known; use one of {', '.join(sorted(BUILT_IN))}, "
            'or the import path of your own as "package.module:Class"'
        )
    if not module_name or not attribute:
        raise PolicyError(
            f"policy '{name}' is not an import path; write it as \"package.module:Class\""
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise PolicyError(
            f"policy '{name}': cannot import {module_name} ({error}); "
            "install it, or put its folder on PYTHONPATH"
        ) from error
    except Exception as error:
        raise PolicyError(
            f"policy '{name}': {module_name} fails when imported: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        raise PolicyError(f"policy '{name}': {module_name} has no {attribute}; check the spelling")
    if not callable(found):
        raise PolicyError(
            f"policy '{name}': {attribute} is not a class; name the class, not an instance"
        )
    make: Callable[..., Policy] = found
    return make
