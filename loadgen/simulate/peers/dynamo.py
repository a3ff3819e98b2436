"""NVIDIA Dynamo's KV router, our reading of its documents.

Source: docs/design_docs/router_design.md in ai-dynamo/dynamo, "Cost Calculation": cost =
overlap_score_weight * prefill_blocks + decode_blocks, weight 1, temperature 0. Prefill blocks are
those routed and not yet computed, mine included; decode blocks those of active requests, mine
included.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from router.types import Choice, Load, RoutingRequest, slots

BLOCK = 64
"""Tokens of a block."""


class DynamoCost:
    """The lowest cost wins; ties at random. Active blocks are prompts' whole length, none
    shared."""

    def __init__(self, *, overlap_score_weight: float = 1.0, seed: int = 0) -> None:
        self._overlap = overlap_score_weight
        self._random = random.Random(seed).random

    def members(self, names: Mapping[int, str]) -> None:
        """Does nothing: the cost needs no names."""

    def choose(self, ask: RoutingRequest, loads: Sequence[Load]) -> Choice:
        """The reason is always `cost`."""
        ranked = []
        left = ask.eligible
        for depth, mask in (*ask.held, (0.0, ask.eligible)):
            for slot in slots(mask & left):
                load = loads[slot]
                prefill = (load.queued_tokens + ask.tokens - depth) / BLOCK
                decode = (load.kv_tokens + ask.tokens - depth) / BLOCK
                ranked.append((self._overlap * prefill + decode, self._random(), slot, depth))
            left &= ~mask
        best = min(ranked)
        considered = [
            (slot, depth, cost, loads[slot].queued_tokens, loads[slot].in_flight)
            for cost, _, slot, depth in ranked
        ]
        return Choice(best[2], "cost", considered)
