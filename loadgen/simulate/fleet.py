"""Simulated gateways: one Placer each, and the facts they tell each other with a lag."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from math import inf

import msgspec

from loadgen.engine import Engine, EngineParams
from loadgen.simulate.exact import ExactIndex
from loadgen.simulate.prepare import BYTES_PER_TOKEN, Job
from router.index import ByteIndex
from router.scheduling.placer import INDEX_ROOM, Placement, Placer
from router.scheduling.prefills import Prefill
from router.types import Load, Policy, PrefixIndex

MODEL = "model"
AT_ONCE = 0.001
"""Seconds until others hear of a request that was sent, which is told at once."""


class Arrangement(msgspec.Struct, frozen=True):
    """How one arm routes."""

    name: str
    policy: Callable[[int], Policy]
    """From a seed."""
    exact: bool = False
    """The index is what the engines hold at this moment, as if told by KV events without delay."""
    capacity: float = INDEX_ROOM
    """The index's size for each replica, in units of the KV cache's."""
    polled: float = 0.0
    """Seconds between readings of the engines' metrics, for policies with a `polled` method."""


class Gauge(msgspec.Struct, frozen=True, gc=False):
    """What an engine's metrics say."""

    waiting: int
    running: int
    kv_usage: float


def make_load(params: EngineParams, *, known_speed: bool) -> Load:
    """The books of one idle replica; with `known_speed` they start with the engine's true rates."""
    load = Load(kv_capacity=params.cache_tokens)
    if known_speed:
        load.prefill_rate = params.prefill_rate
        load.step_request_seconds = params.step_request_seconds
        load.step_token_seconds = params.step_token_seconds
    return load


class Gateways:
    """All routers of one arm.

    Each has its own index, books and policy. Of a request sent the others hear within AT_ONCE, of
    what becomes of it `sync` seconds later, or never of both when that is None. `later` schedules a
    call.
    """

    def __init__(
        self,
        arrangement: Arrangement,
        engines: Sequence[Engine],
        spans: Sequence[int],
        *,
        routers: int,
        sync: float | None,
        seed: int,
        known_speed: bool,
        later: Callable[[float, Callable[[float], None]], None],
    ) -> None:
        self._later = later
        self._sync = sync
        self._eligible = (1 << len(engines)) - 1
        self._random = random.Random(f"{seed}/routers")
        self._exact = arrangement.exact
        self.placers: list[Placer] = []
        self._heard: list[dict[int, Prefill]] = [{} for _ in range(routers)]
        """By router: a placement's id -> the prefill it heard of, until the first token."""
        for number in range(routers):
            policy = arrangement.policy(seed + number)
            policy.members({slot: f"replica-{slot}" for slot in range(len(engines))})
            index: PrefixIndex
            if arrangement.exact:
                index = ExactIndex(engines, BYTES_PER_TOKEN)
            else:
                index = ByteIndex(spans)
                for slot, engine in enumerate(engines):
                    size = engine.params.cache_tokens * BYTES_PER_TOKEN * arrangement.capacity
                    index.add_replica(slot, int(size))
            loads = [make_load(engine.params, known_speed=known_speed) for engine in engines]
            self.placers.append(Placer(index, policy, loads))

    def place(self, job: Job, now: float) -> tuple[int, Placement]:
        """(router, placement) of a request at a router taken at random."""
        router = 0 if len(self.placers) == 1 else self._random.randrange(len(self.placers))
        placement = self.placers[router].place(
            job.hashes if self._exact else job.chain,  # type: ignore[arg-type]
            job.prompt_tokens * BYTES_PER_TOKEN,
            MODEL,
            self._eligible,
            job.key,
            now,
        )
        if len(self.placers) > 1:
            p = placement
            self._tell(
                router,
                now,
                lambda other, at: self._hear(other, p, at),
                AT_ONCE,
            )
        return router, placement

    def _hear(self, other: int, p: Placement, at: float) -> None:
        prefill = self.placers[other].apply_peer_routed(
            p.slot, p.chain, p.prompt_bytes, p.uncached, p.tokens, at
        )
        if prefill is not None:
            self._heard[other][id(p)] = prefill

    def first_token(self, router: int, placement: Placement, now: float) -> None:
        """The first token came back through its router."""
        self.placers[router].first_token(placement, now)
        if len(self.placers) > 1:
            p = placement
            self._tell(
                router,
                now,
                lambda other, at: self.placers[other].apply_peer_first_token(
                    p.slot, p.uncached, at, self._heard[other].pop(id(p), None)
                ),
            )

    def finished(
        self, router: int, placement: Placement, job: Job, cached: int, now: float
    ) -> None:
        """The answer's end came back through its router."""
        self.placers[router].finished(placement, now, job.prompt_tokens, job.output_tokens, cached)
        if len(self.placers) > 1:
            p = placement
            self._tell(
                router,
                now,
                lambda other, at: self.placers[other].apply_peer_finished(
                    p.slot, p.chain, p.prompt_bytes, p.uncached, p.tokens, at
                ),
            )

    def failed(self, router: int, placement: Placement, now: float) -> None:
        """The engine refused it."""
        self.placers[router].failed(placement, now)
        if len(self.placers) > 1:
            p = placement
            self._tell(
                router,
                now,
                lambda other, at: self.placers[other].apply_peer_failed(
                    p.slot, p.uncached, p.tokens, at, self._heard[other].pop(id(p), None)
                ),
            )

    def _tell(
        self, router: int, now: float, fact: Callable[[int, float], None], most: float = inf
    ) -> None:
        if self._sync is None:
            return
        lag = min(self._sync, most)

        def arrive(at: float) -> None:
            for other in range(len(self.placers)):
                if other != router:
                    fact(other, at)

        if lag:
            self._later(now + lag, arrive)
        else:
            arrive(now)
