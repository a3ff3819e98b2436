"""How long KV blocks take from one engine to another."""

from __future__ import annotations

import msgspec

from loadgen.engine.params import EngineParams
from loadgen.engine.presets import KV_BYTES


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """A link of so many bytes a second between engines whose KV has so many bytes a token."""

    token_bytes: float = 131_072.0
    """Keys and values of one token; the default is an 8B model's in bfloat16."""
    bytes_per_second: float = 25e9
    """200 Gbit/s."""
    base_seconds: float = 0.002
    """Of every transfer, whatever its length: telling the other engine, and being told."""

    def seconds(self, tokens: int) -> float:
        """Of a transfer that has the link to itself."""
        return self.base_seconds + self.bytes(tokens) / self.bytes_per_second

    def bytes(self, tokens: int) -> float:
        """What so many tokens are on the wire."""
        return tokens * self.token_bytes


def transfer_for(params: EngineParams) -> Transfer:
    """With the KV bytes of a preset's model; the default's for others."""
    return Transfer(token_bytes=float(KV_BYTES.get(params.name, Transfer().token_bytes)))


OFFLOAD_GB_PER_S = 25.0
"""From a tier behind GPU memory, 10^9 bytes a second: PCIe 4.0 with 16 lanes, as it is usually
measured."""
OFFLOAD_BASE_S = 0.001
"""Of each transfer: telling the worker, copies that are not long enough, being told."""


def offloading(
    params: EngineParams, gigabytes: float, gb_per_s: float = OFFLOAD_GB_PER_S
) -> EngineParams:
    """The same engine with a tier of so many 10^9 bytes; 0: without one. Raises ValueError for a
    tier that is negative, or has no bandwidth."""
    if gigabytes < 0 or gb_per_s <= 0:
        raise ValueError(
            f"a tier needs 0 GB or more, not {gigabytes:g}, and more than 0 GB/s, not {gb_per_s:g}"
        )
    token_bytes = transfer_for(params).token_bytes
    return msgspec.structs.replace(
        params,
        offload_tokens=int(gigabytes * 1e9 / token_bytes),
        offload_token_seconds=token_bytes / (gb_per_s * 1e9),
        offload_base_seconds=OFFLOAD_BASE_S,
    )


class Link:
    """One engine's end of the network: what it is to fetch comes one after the other."""

    __slots__ = ("_free_at",)

    def __init__(self) -> None:
        self._free_at = 0.0

    def take(self, seconds: float, now: float) -> float:
        """When a transfer of so many seconds that is asked for now will be over."""
        begun = self._free_at if self._free_at > now else now
        self._free_at = begun + seconds
        return self._free_at
