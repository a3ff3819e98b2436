"""The types that travel between the rooms.

Two kinds of small number run through everything:

- A *slot* is a replica's index in the fleet. It is reused only after the replica has been
forgotten.
- A *mask* is a set of slots as an int, bit ``1 << slot``. Who is healthy, who serves a model, who
holds
  a block: all are masks, so that "healthy and serves it and holds it" is two machine operations
  however large the fleet is.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol, TypeAlias

import msgspec

Considered: TypeAlias = tuple[int, float, float, float, int]
"""A candidate as a policy saw it: slot, prompt tokens held, cost in the policy's own unit, and its
load before this request: uncached tokens queued, requests in flight."""

Chain: TypeAlias = "array[int]"
"""A prompt's block hashes in order, typecode 'Q'. Each hash covers every block before it too, so
two
chains that agree at one position agree at all earlier ones."""


@lru_cache(maxsize=4096)
def slots(mask: int) -> tuple[int, ...]:
    """The slots in a mask, ascending. Remembered, since a fleet shows few distinct masks at a
    time."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return tuple(found)


class CacheRoom(Protocol):
    """How full one replica's KV cache is, as the index models it. Units: the index's weight."""

    used: int
    capacity: int


STEP_REQUEST_SECONDS = 40e-6
STEP_TOKEN_SECONDS = 0.044e-6
"""What a running request, and a token of its context, add to a decode step of a 32B model on two
H100: as good a ratio of the two as any. How much it is of a replica is learned."""


class Load(msgspec.Struct, gc=False):
    """One replica's work, as the books of all routers have it. Times are monotonic seconds."""

    queued_tokens: float = 0.0
    """Q: uncached prompt tokens routed here whose first token has not come."""
    busy_until: float = 0.0
    """When the prefill work routed here would be done, by the last first token that came."""
    in_flight: int = 0
    """n: requests routed here and not finished."""
    context_tokens: float = 0.0
    """K: prompt tokens of the requests in flight."""
    kv_tokens: float = 0.0
    """A: like K, with shared blocks counted about once."""
    prefilled_tokens: float = 0.0
    """Uncached prompt tokens whose first token has come, since the beginning."""
    prefill_rate: float = 20_000.0
    """P: prefill tokens a second."""
    step_seconds: float = 0.0
    """b: decode step seconds whatever runs; only differences between replicas matter."""
    step_request_seconds: float = STEP_REQUEST_SECONDS
    """c: decode step seconds for each running request."""
    step_token_seconds: float = STEP_TOKEN_SECONDS
    """d: decode step seconds for each token of context."""
    weight: float = 1.0
    """Slow start: the share of its usual load this replica may take, in (0, 1]."""
    cache_used: float = 0.0
    """Tokens the index believes the KV cache holds."""
    cache_tokens: float = 0.0
    """Tokens the index gives the KV cache room for; 0 when unknown."""
    kv_capacity: float = 0.0
    """C: tokens the KV cache really has room for; 0 when unknown."""


NOTHING_SHARED: Mapping[int, float] = MappingProxyType({})


class Ask(msgspec.Struct, gc=False):
    """One request as a policy sees it."""

    eligible: int
    """Mask of the replicas that may take it; never 0."""
    tokens: float
    """L: the prompt's tokens, estimated."""
    held: list[tuple[float, int]]
    """(leading tokens held, mask of the holders), deepest first; the masks are disjoint and include
    replicas that are not eligible."""
    output_tokens: float
    """O: tokens the answer is expected to have."""
    key: str
    """What names the session: session header, prompt_cache_key or user; empty when the client gave
    none."""
    prefix: int
    """Hash of the prompt's first blocks; 0 for a prompt too short to have one."""
    now: float
    """Monotonic seconds."""
    shared: Mapping[int, float] = NOTHING_SHARED
    """S: slot -> tokens queued there that are of this prompt's own prefix: another request with it
    is being computed. Slots without any are absent."""


class Choice(msgspec.Struct, gc=False, frozen=True):
    """What a policy decided."""

    slot: int
    reason: str
    """One of a few fixed words a policy names; it is a metric label."""
    considered: Sequence[Considered] = ()
    """The candidates looked at; the least cost wins."""


class Policy(Protocol):
    """Chooses a replica. Called between two socket events: it must not block or await."""

    def choose(self, ask: Ask, loads: Sequence[Load]) -> Choice:
        """Pick one slot of ask.eligible. loads is indexed by slot."""
        ...

    def members(self, names: Mapping[int, str]) -> None:
        """The fleet changed: slot -> the replica's stable name. Called before the first choose."""
        ...


class PrefixIndex(Protocol):
    """Which replica holds which prefix, how deep. In memory, no I/O.

    Weight is what blocks are measured in: canonical bytes in the byte-block index, tokens in exact
    mode.
    """

    @property
    def spans(self) -> Sequence[int]:
        """The weight of a chain's first n blocks, for each n from 0."""
        ...

    def add_replica(self, slot: int, capacity: int) -> None:
        """Start an empty LRU of this weight for a slot."""
        ...

    def resize(self, slot: int, capacity: int) -> None:
        """The replica's KV cache turned out to have another size; evicts at once when smaller."""
        ...

    def forget(self, slot: int) -> None:
        """The replica restarted with an empty cache: drop all it held, keep its capacity."""
        ...

    def remove_replica(self, slot: int) -> None:
        """The replica left; the slot may be added again later."""
        ...

    def match(self, chain: Chain) -> list[tuple[int, int]]:
        """(leading weight held, mask of holders), deepest first, masks disjoint; holders of
        nothing absent."""
        ...

    def record(self, slot: int, chain: Chain, now: float) -> None:
        """The replica has, or will have, the whole chain: insert it, touch it tail first, evict
        what is over."""
        ...

    def room(self, slot: int) -> CacheRoom:
        """A live view of the slot's LRU; stays valid until remove_replica."""
        ...
