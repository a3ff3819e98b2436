"""One request as the simulated engine sees it: token counts and block hashes, never text."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import msgspec


class Stage(IntEnum):
    """Where a request stands. A preempted request is WAITING again, and so is one whose blocks were
    fetched or loaded."""

    WAITING = 0
    PREFILL = 1
    DECODE = 2
    DONE = 3
    FETCHING = 4


class Request(msgspec.Struct, eq=False):
    """What to run, and what became of it. Times are in the engine's seconds; nan until they happen.

    The first three fields and the hashes are the caller's; the engine writes everything else.
    """

    prompt_tokens: int
    output_tokens: int
    """Tokens the answer will have; at least 1."""
    hashes: Sequence[int]
    """One hash for each full block of the prompt, each covering the blocks before it. More are
    ignored, so a trace's id for a last, partial block may stay. Not negative."""
    output_hashes: Sequence[int] = ()
    """Hashes of the blocks after the prompt's full ones: the first ends with the prompt's remainder
    and the answer's first tokens. Where they run out, a block gets a hash of its own that nothing
    can hit."""
    tag: Any = None
    """A value of the caller; the engine does not look at it."""
    keep: bool = False
    """Its blocks stay after its end, for another engine, until ``Engine.free``."""
    remote: bool = False
    """Another engine has the prompt's blocks, which are fetched instead of computed; False again
    once that has begun."""
    adapter: str = ""
    """The LoRA adapter that it needs; empty for the base model."""

    stage: Stage = Stage.WAITING
    arrived: float = float("nan")
    queued_at: float = float("nan")
    """When its overhead was over; the same as ``arrived`` where there is none."""
    scheduled_at: float = float("nan")
    first_token_at: float = float("nan")
    finished_at: float = float("nan")
    aborted: bool = False
    cached_tokens: int = -1
    """Prompt tokens found in the cache or fetched when first scheduled (``cached_tokens`` in
    usage); -1 before."""
    fetched_tokens: int = 0
    """Of these, what another engine has computed."""
    loaded_tokens: int = 0
    """Of these, what came from a tier behind GPU memory."""
    preemptions: int = 0

    blocks: list[int] = msgspec.field(default_factory=list)
    hashed: int = 0
    """Leading blocks that are in the prefix cache's map."""
    computed: int = 0
    """Tokens whose keys and values are computed; kept up to date outside DECODE only."""
    outputs: int = 0
    """Tokens emitted when the current DECODE began; ``Engine.emitted`` gives the number now."""
    entry_tick: int = 0
    order: int = 0
    """Position in the running list; later admissions have larger ones and are preempted first."""


def block_key(request: Request, position: int, full: int) -> int | None:
    """The hash of the request's block at ``position``, or None where the caller gave none. full:
    full blocks of its prompt."""
    if position < full:
        return request.hashes[position]
    position -= full
    outputs = request.output_hashes
    return outputs[position] if position < len(outputs) else None
