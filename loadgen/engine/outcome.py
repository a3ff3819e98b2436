"""What an engine tells: the cache's changes as they happen, each step's outcome, totals."""

from __future__ import annotations

from typing import Protocol

import msgspec

from loadgen.engine.request import Request


class CacheObserver(Protocol):
    """Told of every change of the prefix cache, in vLLM's order (what KV events are made of)."""

    def stored(self, request: Request, first: int, end: int) -> None:
        """The request's blocks first..end (exclusive) entered the cache."""
        ...

    def removed(self, key: int) -> None:
        """One block with this hash was evicted."""
        ...

    def cleared(self) -> None:
        """The cache forgot all blocks at once."""
        ...

    def offloaded(self, key: int) -> None:
        """A block of this hash, which leaves GPU memory, entered the tier behind it."""
        ...

    def dropped(self, key: int) -> None:
        """The tier behind GPU memory evicted a block of this hash."""
        ...


class StepResult(msgspec.Struct, gc=False):
    """What became visible at the end of a run of steps."""

    at: float
    """The time of the step's end, on the engine's own clock in seconds."""
    steps: int
    first_tokens: list[Request]
    finished: list[Request]
    """In the order vLLM would report them. A one-token answer is in both lists."""


class Counters(msgspec.Struct, gc=False):
    """Totals since the engine started, as vLLM's metrics count them."""

    prefix_queries: int = 0
    """Tokens looked up when first scheduled; preempted requests are not counted again."""
    prefix_hits: int = 0
    prompt_tokens: int = 0
    """Prompt tokens of requests whose prefill is done."""
    prompt_tokens_cached: int = 0
    """Those fetched from another engine or loaded from a tier among them."""
    prompt_tokens_fetched: int = 0
    prompt_tokens_loaded: int = 0
    offload_queries: int = 0
    """Tokens that GPU memory did not have, looked up in the tier."""
    offload_hits: int = 0
    offload_load_seconds: float = 0.0
    """Seconds of all transfers from the tier."""
    generation_tokens: int = 0
    preemptions: int = 0
    finished: int = 0
    aborted: int = 0
    steps: int = 0
