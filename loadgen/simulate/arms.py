"""The policies and gateways that can be simulated, by name."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from loadgen.simulate.apart import ALWAYS, CHOSEN, DECIDER
from loadgen.simulate.checked import own_policy, try_policy
from loadgen.simulate.fleet import Arrangement
from loadgen.simulate.peers import PEERS
from loadgen.suggest import did_you_mean
from router.policies import BUILT_IN, load_policy
from router.types import Policy

UNSEEDED = frozenset({"round_robin"})


def of_policy(name: str, **options: object) -> Callable[[int], Policy]:
    """A maker of one of the gateway's own policies, or of one by import path."""

    def make(seed: int) -> Policy:
        if name not in BUILT_IN:
            return own_policy(name, **options)
        if name not in UNSEEDED:
            return load_policy(name, seed=seed, **options)
        return load_policy(name, **options)

    return make


ARRANGEMENTS: dict[str, Arrangement] = {
    **{name: Arrangement(name, of_policy(name)) for name in BUILT_IN},
    "cache_aware_no_adapters": Arrangement(
        "cache_aware_no_adapters", of_policy("cache_aware"), adapters=False
    ),
    "cache_aware_exact": Arrangement("cache_aware_exact", of_policy("cache_aware"), exact=True),
    **PEERS,
}
"""Built-in policies, the default policy when it does not mind where LoRA adapters are loaded and
with an exact index, and our reading of other gateways."""


def arms_of(arranged: Arrangement, prefill: int) -> list[Arrangement]:
    """An arrangement, and where some engines prefill for the others, the same engines in three
    ways: as the gateway chooses, always, and as llm-d's decider does. Raises ValueError for one
    with a queue."""
    if not prefill:
        return [arranged]
    if arranged.queue is not None or arranged.holding is not None:
        raise ValueError(f"{arranged.name} has a queue, which is not simulated with --prefill")
    return [
        arranged,
        *(
            msgspec.structs.replace(arranged, name=f"{arranged.name}_{word}", apart=apart)
            for word, apart in (
                ("apart", CHOSEN),
                ("always_apart", ALWAYS),
                ("decider_apart", DECIDER),
            )
        ),
    ]


def arrangement(name: str) -> Arrangement:
    """By name, or a policy by its import path. Raises ValueError (PolicyError) with what there
    is, and PolicyFailedError for a policy that does not work."""
    found = ARRANGEMENTS.get(name)
    if found is not None:
        return found
    if ":" not in name:
        like = did_you_mean(name, ARRANGEMENTS)
        raise ValueError(
            f"no policy or gateway is called {name!r}{like or ':'} use one of "
            f"{', '.join(ARRANGEMENTS)}, or the import path of a policy as "
            '"package.module:Class"'
        )
    try_policy(name)
    return Arrangement(name, of_policy(name))
