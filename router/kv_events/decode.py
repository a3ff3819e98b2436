"""vLLM's KV event batches, in every encoding there has been.

A batch is ``[time, events, data-parallel rank]``; some builds of vLLM's main branch have sent a map
of ``ts``, ``events`` and ``data_parallel_rank`` instead. An event is a map with its kind under
``type`` (since 0.23), or an array with its kind first and its fields in the same order (before).
Block hashes are integers or bytes. See vLLM's ``vllm/distributed/kv_events.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec

EngineHash: TypeAlias = int | bytes
"""A block's name as its engine gives it; nothing is assumed about how it is made."""
TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
"""An integer that fits the arrays in which prompts are kept."""


class Stored(msgspec.Struct, tag_field="type", tag="BlockStored", gc=False):
    """A run of consecutive blocks entered the cache, one copy of each."""

    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[TokenId]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    """For each block what else its hash covers: adapter, media, salt. None from older engines."""
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    """Of a tier: LOCAL to the engine, or REMOTE. None where the engine does not say."""


class Removed(msgspec.Struct, tag_field="type", tag="BlockRemoved", gc=False):
    """One copy of each of these blocks left the cache."""

    block_hashes: list[int | bytes]
    medium: str | None = None
    group_idx: int | None = None


class Cleared(msgspec.Struct, tag_field="type", tag="AllBlocksCleared", gc=False):
    """The engine emptied its cache."""


class _OldStored(Stored, tag_field="type", tag="BlockStored", array_like=True, gc=False):
    pass


class _OldRemoved(Removed, tag_field="type", tag="BlockRemoved", array_like=True, gc=False):
    pass


class _OldCleared(Cleared, tag_field="type", tag="AllBlocksCleared", array_like=True, gc=False):
    pass


Event: TypeAlias = Stored | Removed | Cleared


class Batch(msgspec.Struct, array_like=True, gc=False):
    """What one engine step changed, in order."""

    time: float
    """The engine's clock, in Unix seconds."""
    events: list[Stored | Removed | Cleared]
    data_parallel_rank: int | None = None


class _OldBatch(msgspec.Struct, array_like=True, gc=False):
    time: float
    events: list[_OldStored | _OldRemoved | _OldCleared]
    data_parallel_rank: int | None = None


class _AnyBatch(msgspec.Struct, array_like=True, gc=False):
    time: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


class _MapBatch(msgspec.Struct, rename={"time": "ts"}, gc=False):
    time: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


_batch = msgspec.msgpack.Decoder(Batch)
_old_batch = msgspec.msgpack.Decoder(_OldBatch)
_any_batch = msgspec.msgpack.Decoder(_AnyBatch)
_map_batch = msgspec.msgpack.Decoder(_MapBatch)
_event = msgspec.msgpack.Decoder(Stored | Removed | Cleared)
_old_event = msgspec.msgpack.Decoder(_OldStored | _OldRemoved | _OldCleared)
_kind = msgspec.msgpack.Decoder()

_FIXMAP = 0x8
"""The upper half of a first byte that begins a map of up to 15 members."""
_MAPS = (0xDE, 0xDF)
"""First bytes of larger ones."""

KNOWN = ("BlockStored", "BlockRemoved", "AllBlocksCleared")


def decode(payload: bytes) -> Batch:
    """Read one batch. Events of kinds not known are left out.

    Raises ValueError when it is no batch, or a known event has another shape: what the engine holds
    is then not known any more.
    """
    try:
        return _batch.decode(payload)
    except msgspec.ValidationError:
        pass
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"not msgpack: {error}") from None
    try:
        old = _old_batch.decode(payload)
        return Batch(old.time, list(old.events), old.data_parallel_rank)
    except msgspec.ValidationError:
        return _piecemeal(payload)
    except RecursionError as error:
        raise ValueError(f"not msgpack: {error}") from None


def _piecemeal(payload: bytes) -> Batch:
    try:
        is_map = payload[0] >> 4 == _FIXMAP or payload[0] in _MAPS
        batch = (_map_batch if is_map else _any_batch).decode(payload)
        events: list[Event] = []
        for raw in batch.events:
            tree = _kind.decode(raw)
            kind = tree.get("type") if isinstance(tree, dict) else tree[0] if tree else None
            if kind in KNOWN:
                decoder = _event if isinstance(tree, dict) else _old_event
                events.append(decoder.decode(raw))
    except (msgspec.DecodeError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"not a batch of KV events: {error}") from None
    return Batch(batch.time, events, batch.data_parallel_rank)
