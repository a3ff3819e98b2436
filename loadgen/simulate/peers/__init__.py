"""Other gateways' rules as policies, for the simulator only. Each is our reading of its documents.

They run on the same index, books and engines as the gateway's own policies; what a rule needs
beside (its own capacity, polled metrics, exact knowledge) its arrangement says. What their
documents do not say, or what our index cannot express, is decided in their favour and noted beside
the rule.
"""

from __future__ import annotations

from loadgen.simulate.fleet import Arrangement
from loadgen.simulate.peers.dynamo import DynamoCost
from loadgen.simulate.peers.holding import dynamo_queue, llmd_flow_control
from loadgen.simulate.peers.llmd import POLL_SECONDS, WeightedScorers
from loadgen.simulate.peers.sglang import SglangCacheAware

PEERS: dict[str, Arrangement] = {
    "peer_sglang": Arrangement(
        "peer_sglang", lambda seed: SglangCacheAware(seed=seed), capacity=10.0
    ),
    "peer_llmd_approximate": Arrangement(
        "peer_llmd_approximate",
        lambda seed: WeightedScorers(seed=seed),
        capacity=2.0,
        polled=POLL_SECONDS,
    ),
    "peer_llmd_precise": Arrangement(
        "peer_llmd_precise",
        lambda seed: WeightedScorers(seed=seed),
        exact=True,
        polled=POLL_SECONDS,
    ),
    "peer_dynamo": Arrangement("peer_dynamo", lambda seed: DynamoCost(seed=seed), exact=True),
}
LLMD_QUEUE = Arrangement(
    "llm-d's queue",
    lambda seed: WeightedScorers(seed=seed),
    exact=True,
    polled=POLL_SECONDS,
    holding=llmd_flow_control,
)
DYNAMO_QUEUE = Arrangement(
    "Dynamo's queue", lambda seed: DynamoCost(seed=seed), exact=True, holding=dynamo_queue
)
"""Both are opt-in there, so that they are no arms of the comparison without a queue."""
"""Capacities: SGLang's tree holds far more than a cache (max_tree_size); llm-d's LRU of 31,250
blocks a server is about twice ours."""
