"""Simulated gateways: one Placer each, and the facts they tell each other with a lag."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import msgspec

from loadgen.engine import Engine, EngineParams
from loadgen.simulate.apart import Apart
from loadgen.simulate.exact import ExactIndex, ExactTiers
from loadgen.simulate.prepare import BYTES_PER_TOKEN, Job
from loadgen.simulate.queueing import Asked, Holding, OneQueue, Queues, Sender
from router.config.queueing import QueueSettings
from router.index import ByteIndex
from router.prompt import Prompt
from router.queue.ticket import Refusal, Ticket
from router.scheduling.adapters import Adapters
from router.scheduling.device_model import DeviceModel, TierModel
from router.scheduling.peer_request import PeerRequest
from router.scheduling.placer import INDEX_ROOM, Placement, Placer
from router.types import Load, Policy, PrefixIndex

MODEL = "model"
AT_ONCE = 0.001
"""Seconds until others hear of a request that was sent, which is told at once."""


PREFILL_RATE_START = 20_000.0
"""Prefill speed that a simulated gateway starts from when it does not know the engine's own."""


Tiers: TypeAlias = Literal["priced", "as_gpu", "ignored"]


class Arrangement(msgspec.Struct, frozen=True):
    """How one arm routes."""

    name: str
    policy: Callable[[int], Policy]
    """From a seed."""
    exact: bool = False
    """The index is what the engines hold at this moment, as if told by KV events without delay."""
    capacity: float = INDEX_ROOM
    """The index's size for each replica, in units of the KV cache's."""
    tiers: Tiers = "priced"
    """How tiers behind GPU memory count: at what loading was learned to cost, like GPU memory, or
    not at all."""
    polled: float = 0.0
    """Seconds between readings of the engines' metrics, for policies with a `polled` method."""
    queue: QueueSettings | None = None
    """The gateway's queue; None: every request is sent when it comes."""
    holding: Callable[[Placer], Holding] | None = None
    """Another gateway's queue instead, made from the router's placer. For one router."""
    by_prompt: bool = False
    """The queue tells sessions apart by their prompts, not by their keys."""
    adapters: bool = True
    """Where LoRA adapters are loaded counts."""
    apart: str = ""
    """Which requests replicas of their own prefill, the last ones of the fleet: "chosen" as the
    gateway does, or "always"; "both": these answer clients as well. Empty: every replica computes
    what it answers."""


class Gauge(msgspec.Struct, frozen=True, gc=False):
    """What an engine's metrics say."""

    waiting: int
    running: int
    kv_usage: float


def make_load(params: EngineParams, *, known_speed: bool) -> Load:
    """The books of one idle replica; with `known_speed` they start with the engine's true rates."""
    load = Load(prefill_rate=PREFILL_RATE_START, kv_capacity=params.cache_tokens)
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
        prefill: int = 0,
    ) -> None:
        self.later = later
        self._engines = engines
        self._sync = sync
        self._spans = spans
        self._by_prompt = arrangement.by_prompt
        self.eligible = (1 << len(engines)) - 1
        """Replicas that are there and answer clients, as a mask."""
        self.apart = Apart(arrangement.apart, len(engines), prefill, routers)
        """Which requests others prefill."""
        self.eligible = self.apart.answering
        self._random = random.Random(f"{seed}/routers")
        self._exact = arrangement.exact
        self._parents: dict[str, str] = {}
        """LoRA adapter -> its base model, of those that were asked for."""
        self.placers: list[Placer] = []
        self._heard: list[dict[int, PeerRequest]] = [{} for _ in range(routers)]
        """By router: a placement's id -> what the router was told of that request."""
        for number in range(routers):
            policy = arrangement.policy(seed + number)
            policy.members({slot: f"replica-{slot}" for slot in range(len(engines))})
            index, tiers = self._index(arrangement)
            loads = [make_load(engine.params, known_speed=known_speed) for engine in engines]
            adapters = None
            if arrangement.adapters:
                adapters = Adapters(self._parents)
                for slot, engine in enumerate(engines):
                    adapters.metrics_told(slot, engine.params.max_loras, ())
            self.placers.append(Placer(index, policy, loads, adapters=adapters, tiers=tiers))
        self.queues: Sequence[OneQueue] | None = None
        """By router, where requests are queued."""
        self._own: Queues | None = None
        self._holding: Holding | None = None
        self._limit = 0.0
        if arrangement.queue is not None:
            self._own = Queues(self, arrangement.queue, self.placers)
            self.queues = self._own.all
            self._limit = arrangement.queue.ttft_limit
        elif arrangement.holding is not None:
            if routers > 1:
                raise ValueError("another gateway's queue is simulated for one router")
            self._holding = arrangement.holding(self.placers[0])
            self.queues = [self._holding]

    def _index(self, arrangement: Arrangement) -> tuple[PrefixIndex, TierModel | None]:
        """An index of what the engines hold, and what tells which of it lies in tiers."""
        engines, how = self._engines, arrangement.tiers
        if arrangement.exact:
            exact = ExactIndex(engines, BYTES_PER_TOKEN, tiers=how != "ignored")
            return exact, ExactTiers(exact) if how == "priced" and exact.mask else None
        index = ByteIndex(self._spans)
        model = DeviceModel(self._spans)
        for slot, engine in enumerate(engines):
            params = engine.params
            device = int(params.cache_tokens * BYTES_PER_TOKEN * arrangement.capacity)
            behind = 0 if how == "ignored" else params.offload_tokens * BYTES_PER_TOKEN
            index.add_replica(slot, device + behind)
            model.resize(slot, device, tier=behind > 0)
        return index, model if how == "priced" else None

    def begin(self, more: Callable[[], bool]) -> None:
        """Let the queues' own time pass, as long as there is more to come."""
        if self._own is not None:
            self._own.begin(self._engines, more)

    def polled(self, gauges: list[Gauge], now: float) -> None:
        """The engines' metrics were read."""
        for placer in self.placers:
            placer.policy.polled(gauges)  # type: ignore[attr-defined]
        if self._holding is not None:
            self._holding.polled(now)

    def lose(self, slot: int) -> None:
        """A replica is gone, and its cache with it."""
        self.eligible &= ~(1 << slot)
        for placer in self.placers:
            placer.forget(slot)

    def regain(self, slot: int) -> None:
        """It is there again."""
        self.eligible |= 1 << slot

    def place(self, job: Job, now: float) -> tuple[int, Placement]:
        """(router, placement) of a request at a router taken at random."""
        router = self._router()
        return router, self.choose(router, job, self.eligible, now)

    def offer(
        self,
        job: Job,
        now: float,
        send: Sender,
        refused: Callable[[Refusal, float], None],
        take: Callable[[int, Ticket], None],
    ) -> None:
        """Hand a request to the queue of a router taken at random; `take` is told both before."""
        assert self.queues is not None
        router = self._router()
        asked = Asked(
            self,
            router,
            job,
            send,
            refused,
            self._spans,
            now,
            by_prompt=self._by_prompt,
            limit=self._limit,
        )
        take(router, asked.ticket)
        self.queues[router].offer(asked.ticket, now)

    def _router(self) -> int:
        return 0 if len(self.placers) == 1 else self._random.randrange(len(self.placers))

    def choose(self, router: int, job: Job, eligible: int, now: float) -> Placement:
        """Place a request, and tell the other routers."""
        if job.adapter:
            self._parents[job.adapter] = MODEL
        prompt = Prompt(
            model=job.adapter or MODEL,
            chain=job.hashes if self._exact else job.chain,  # type: ignore[arg-type]
            size=job.prompt_tokens * BYTES_PER_TOKEN,
            stream=True,
            key=job.key,
        )
        placement = self.placers[router].place(prompt, eligible, now)
        if len(self.placers) > 1:
            self.tell(router, now, lambda other, at: self._hear(other, placement, at), at_once=True)
        return placement

    def _hear(self, other: int, placement: Placement, at: float) -> None:
        prompt = placement.prompt
        request = self._heard[other][id(placement)] = PeerRequest(
            placement.slot,
            prompt.size,
            placement.uncached,
            placement.tokens,
            prompt.chain,
            len(prompt.chain),
        )
        self.placers[other].apply_peer_routed(request, at)

    def first_token(self, router: int, placement: Placement, now: float) -> None:
        """The first token came back through its router."""
        placement.first_token(now)
        if len(self.placers) > 1:
            self.tell(
                router,
                now,
                lambda other, at: self.placers[other].apply_peer_first_token(
                    self._heard[other][id(placement)], at
                ),
            )

    def prefill(self, router: int, placement: Placement, job: Job, now: float) -> Placement | None:
        """Where its prompt is to be prefilled, if elsewhere than where it was placed."""
        slot = self.apart.choose(router, placement, now)
        if slot < 0:
            return None
        placement.relieve(now)
        return self.choose(router, job, 1 << slot, now)

    def finished(
        self,
        router: int,
        placement: Placement,
        job: Job,
        cached: int,
        now: float,
        *,
        output: int | None = None,
    ) -> None:
        """The answer's end came back through its router. output: its tokens, where they are not the
        job's."""
        if output is None:
            output = job.output_tokens
        engine = self._engines[placement.slot]
        if engine.counters.offload_hits:
            # As the router has it from the engine's metrics.
            counters = engine.counters
            placement.load.tier_seconds = counters.offload_load_seconds / counters.offload_hits
        placement.finished(now, job.prompt_tokens, output, cached)
        if len(self.placers) > 1:
            self.tell(
                router,
                now,
                lambda other, at: self.placers[other].apply_peer_finished(
                    self._heard[other].pop(id(placement)), at
                ),
            )

    def failed(self, router: int, placement: Placement, now: float) -> None:
        """The engine refused it."""
        placement.failed(now)
        if len(self.placers) > 1:
            self.tell(
                router,
                now,
                lambda other, at: self.placers[other].apply_peer_failed(
                    self._heard[other].pop(id(placement)), at
                ),
            )

    def tell(
        self,
        router: int,
        now: float,
        fact: Callable[[int, float], None],
        *,
        at_once: bool = False,
    ) -> None:
        """Have the other routers hear a fact."""
        if self._sync is None:
            return
        lag = min(self._sync, AT_ONCE) if at_once else self._sync

        def arrive(at: float) -> None:
            for other in range(len(self.placers)):
                if other != router:
                    fact(other, at)

        if lag:
            self.later(now + lag, arrive)
        else:
            arrive(now)
