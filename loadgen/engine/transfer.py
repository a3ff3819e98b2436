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
