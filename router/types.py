"""The types that travel between the rooms.

Two kinds of small number run through everything:

- A *slot* is a replica's index in the fleet. It is reused only after the replica has been
  forgotten.
- A *mask* is a set of slots as an int, bit ``1 << slot``. Who is healthy, who serves a model, who
  holds a block: all are masks, so that "healthy and serves it and holds it" is two operations,
  however large the fleet is.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, Protocol, TypeAlias

import msgspec

Role: TypeAlias = Literal["decode", "prefill", "both"]
"""What a replica is for: decode answers clients, prefill computes prompts for those that do."""

Considered: TypeAlias = tuple[int, float, float, float, int]
"""A candidate as a policy saw it: slot, prompt tokens held, cost in the policy's own unit, and its
load before this request: uncached tokens queued, requests in flight."""

Chain: TypeAlias = "array[int]"
"""A prompt's block hashes in order, typecode 'Q'. Each hash covers every block before it too, so
two chains that agree at one position agree at all earlier ones."""

NO_CHAIN: Chain = array("Q")
"""The chain of a prompt too short to have a block."""


class TierShare(msgspec.Struct, frozen=True, gc=False):
    """What a replica holds of a prompt, where a part of it lies in a tier behind GPU memory."""

    tokens: float
    """Leading tokens held, in GPU memory and in tiers together."""
    media: Mapping[str, float]
    """Those in tiers, by the tier's medium as KV events name it."""


class TierPart(msgspec.Struct, frozen=True, gc=False):
    """Prompt tokens expected from a tier behind GPU memory."""

    medium: str
    """As KV events name it."""
    tokens: int
    seconds: float
    """What loading all of them was expected to take."""
    known: str
    """Where that is from: learned, measured (by the engine), set or assumed."""


NOTHING_BEHIND: Mapping[int, TierShare] = MappingProxyType({})


class PromptTokens(Protocol):
    """A prompt's token ids, made here as its engines make them (exact mode)."""

    count: int
    salted: bool
    """The client asked for blocks that only requests with the same salt share."""

    @property
    def replicas(self) -> int:
        """Mask of the replicas whose engines were seen to make the same tokens."""
        ...

    def chain(self, block: int) -> Chain:
        """The hashes of its full blocks of so many tokens."""
        ...


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
H100. Only their ratio is taken from there; how much they are at a replica is learned."""


PREFILL_RATE_GUESS = 8_000.0
"""Prompt tokens a second that a replica computes, until its first tokens have been seen. Too high
spreads load worse than too low (docs/design/policies.md)."""


class Load(msgspec.Struct, gc=False):
    """One replica's work, sent by any router and not finished. Times are monotonic seconds."""

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
    prefill_rate: float = PREFILL_RATE_GUESS
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
    tier_seconds: float = 0.0
    """Seconds that a token took from CPU memory, as the engine's metrics tell; 0 when they do
    not."""
    loading_until: float = 0.0
    """When what this router's requests load from tiers would be loaded."""
    left: bool = False
    """The replica has left; what was sent there may still be in progress."""


class AdapterNeed(msgspec.Struct, frozen=True, gc=False):
    """What a request's LoRA adapter means to the replicas that may take it."""

    cold: int
    """Mask of those that have to load it first."""
    blocked: int
    """Mask of those that cannot load it yet: each of their places is taken by an adapter that has
    requests. Such a request waits until one of these has none any more; others overtake it."""
    full: int
    """Mask of those in which it takes the place of another one."""
    load_seconds: float
    """What loading it is expected to take; meanwhile the replica computes nothing else."""


NOTHING_SHARED: Mapping[int, float] = MappingProxyType({})


class ToolsPlace(Enum):
    """Where a chat template puts the tool definitions."""

    AFTER_SYSTEM = "after the system prompt"
    FIRST = "before the system prompt"
    LAST_USER = "before the last user message"
    NOWHERE = "nowhere"


class Inline(Enum):
    """What a chat template does with a system message that is not at the front."""

    KEPT = "left in its place"
    MOVED = "moved to the front"
    DROPPED = "left out"


class Reasoning(Enum):
    """Until when a chat template renders the reasoning of earlier assistant messages."""

    KEPT = "always"
    TURN = "until the next text of the user"
    ANSWER = "until the next answer without tool calls"
    NEVER = "never"


class Effect(msgspec.Struct, frozen=True, gc=False):
    """What one template argument does to a prompt."""

    head: bytes = b""
    """Names the head it gives the prompt: equal heads, equal names. Empty where the head is as
    without the argument."""
    reasoning: Reasoning | None = None
    """What becomes of earlier reasoning; None where that is as without the argument."""


class TemplateTraits(msgspec.Struct, frozen=True, gc=False):
    """How the chat template of one model orders a prompt, as far as a prefix depends on it.

    The defaults are what most templates do. They hold until the engine was asked.
    """

    cache: str = ""
    """Names the cache that all names of one model share; empty where the name asked for does."""
    known: bool = False
    """The engine was asked: what follows is what it does, not what most do."""
    tools: ToolsPlace = ToolsPlace.AFTER_SYSTEM
    system: Inline = Inline.KEPT
    """An inline system message in the chat and responses APIs."""
    developer: Inline = Inline.MOVED
    """A developer message: vLLM makes one system message of all of them for templates that do not
    know the role."""
    merges_system: bool = True
    """The messages API merges inline system messages into the system prompt, as vLLM does for
    templates that refuse them elsewhere."""
    reasoning: Reasoning = Reasoning.TURN
    arguments: Mapping[bytes, Effect] = MappingProxyType({})
    """By name, "=" and canonical value; an argument that is not here is taken to change nothing."""


DEFAULT_TRAITS = TemplateTraits()
NO_TRAITS: Mapping[str, TemplateTraits] = MappingProxyType({})


class RoutingRequest(msgspec.Struct, gc=False):
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
    """The time of the request, in monotonic seconds."""
    shared: Mapping[int, float] = NOTHING_SHARED
    """S: slot -> tokens queued there that are of this prompt's own prefix: another request with it
    is being computed. Slots without any are absent."""
    adapter: AdapterNeed | None = None
    """Where the replicas stand with its LoRA adapter; None where it asks for none."""
    loading: Mapping[int, float] = NOTHING_SHARED
    """Slot -> seconds that bringing back what lies in tiers behind GPU memory takes there, what
    others wait for of the same tier included. In `held` such tokens count as held. Slots without
    any are absent."""
    behind: Mapping[int, TierShare] = NOTHING_BEHIND
    """By slot, what lies in tiers."""


Ask = RoutingRequest
"""The former name, for custom policies that were written with it."""


class Choice(msgspec.Struct, gc=False, frozen=True):
    """What a policy decided."""

    slot: int
    reason: str
    """One of a few fixed words a policy names; it is a metric label."""
    considered: Sequence[Considered] = ()
    """The candidates looked at; the least cost wins."""


class Policy(Protocol):
    """Chooses a replica. Called between two socket events: it must not block or await."""

    def choose(self, ask: RoutingRequest, loads: Sequence[Load]) -> Choice:
        """Pick one slot of ask.eligible. loads is indexed by slot."""
        ...

    def members(self, names: Mapping[int, str]) -> None:
        """The fleet is now this: slot -> the replica's stable name. Called before the first
        choose, and after each change."""
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

    def record(self, slot: int, chain: Chain, now: float) -> CacheRoom:
        """The replica has, or will have, the whole chain: insert it, touch it tail first, evict
        what is over. Returns a live view of its LRU, which stays valid until remove_replica."""
        ...
