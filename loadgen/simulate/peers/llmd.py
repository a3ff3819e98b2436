"""llm-d's weighted scorers, our reading of its documents.

Sources: llm-d.ai "Prefix-Cache Aware Routing" and "Precise Prefix Cache Routing" (prefix scorer:
share of the prompt's blocks held), llm-d "Request Scheduler" (scores in 0..1, weighted, highest
wins), the Gateway API Inference Extension's plugin guide (queue scorer: (max - mine) / (max - min)
of waiting requests; KV cache scorer: 1 - usage), guides/inference-scheduling in llm-d/llm-d
(weights 3 : 2 : 2, metrics read every 50 ms). Left out, in its favour: the longest prefix matched
(256 blocks).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from loadgen.simulate.fleet import Gauge
from router.types import Choice, Load, RoutingRequest, slots

POLL_SECONDS = 0.05


class WeightedScorers:
    """prefix * share held + queue * emptiness of the queue + kv * free KV cache; ties at random."""

    def __init__(
        self, *, prefix: float = 3.0, queue: float = 2.0, kv: float = 2.0, seed: int = 0
    ) -> None:
        self._weights = (prefix, queue, kv)
        self._random = random.Random(seed).random
        self.gauges: list[Gauge] = []
        """As of the last reading, by slot."""

    def members(self, names: Mapping[int, str]) -> None:
        """Until metrics are read, all are idle."""
        self.gauges = [Gauge(0, 0, 0.0)] * (max(names, default=-1) + 1)

    def polled(self, gauges: list[Gauge]) -> None:
        """Take over the metrics that were just read from the engines."""
        self.gauges = gauges

    def choose(self, ask: RoutingRequest, loads: Sequence[Load]) -> Choice:
        """Reason: score. Costs considered are scores below zero."""
        prefix, queue, kv = self._weights
        fleet = slots(ask.eligible)
        gauges = self.gauges
        waiting = [gauges[slot].waiting for slot in fleet]
        low, high = min(waiting), max(waiting)
        depth_of = dict.fromkeys(fleet, 0.0)
        for depth, mask in ask.held:
            for slot in slots(mask & ask.eligible):
                depth_of[slot] = depth
        ranked = []
        for slot, waits in zip(fleet, waiting, strict=True):
            score = prefix * depth_of[slot] / ask.tokens + kv * (1.0 - gauges[slot].kv_usage)
            score += queue * ((high - waits) / (high - low) if high > low else 1.0)
            ranked.append((-score, self._random(), slot))
        best = min(ranked)
        considered = [
            (slot, depth_of[slot], cost, loads[slot].queued_tokens, loads[slot].in_flight)
            for cost, _, slot in ranked
        ]
        return Choice(best[2], "score", considered)
