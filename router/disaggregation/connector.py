"""What a KV connector of the engines asks of who runs the two legs."""

from __future__ import annotations

from typing import Protocol


class Connector(Protocol):
    """One way for engines to hand KV blocks over: what `kv_transfer_params` says on each leg.

    The legs run one after the other. A connector holds nothing of single requests.
    """

    @property
    def lease_seconds(self) -> float:
        """How long an answer of the prefill engine may be handed on; well below the time for which
        the engine keeps the blocks."""

    def asking(self, transfer: str) -> bytes:
        """The JSON object for the prefill engine. transfer: a name for this hand-over, which no
        other one has."""

    def telling(self, answered: bytes, transfer: str, host: str) -> bytes:
        """The JSON object for the decode engine, or nothing where the prefill engine has no such
        connector.

        answered: the object in the prefill engine's answer, empty for none. host: that engine's.
        """
