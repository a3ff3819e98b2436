"""What a KV connector of the engines asks of who runs the two legs."""

from __future__ import annotations

from typing import Protocol

from router.disaggregation.bodies import Prefilled


class NoHandOverError(Exception):
    """A prefill engine's blocks cannot be handed over. The text goes on from the engine's name:
    why, and behind the last ``": "`` what mends it."""


class Prefiller(Protocol):
    """A prefill engine, as far as a connector looks at it."""

    @property
    def name(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def rank(self) -> int:
        """Of its data-parallel engines."""
        ...


class Connector(Protocol):
    """One way for engines to hand KV blocks over: what `kv_transfer_params` says on each leg.

    The legs run one after the other. A connector holds nothing of single requests.
    """

    @property
    def lease_seconds(self) -> float:
        """How long an answer of the prefill engine may be handed on; well below the time for which
        the engine keeps the blocks."""

    @property
    def names_legs(self) -> bool:
        """The engines find each other's requests by ``X-Request-Id``, so that both legs need one
        that no other request has. A client may choose its own."""

    async def meet(self, prefiller: Prefiller) -> None:
        """Find out what `telling` needs to know of this prefill engine. Called before each first
        leg; returns at once where it is known.

        Raises NoHandOverError.
        """

    def forget(self, host: str) -> None:
        """An engine on this host may have restarted: what was found out may be wrong."""

    def asking(self, transfer: str) -> bytes:
        """The JSON object for the prefill engine; empty where it needs none. transfer: a name for
        this hand-over, which no other one has."""

    def telling(self, answered: Prefilled, transfer: str, prefiller: Prefiller) -> bytes:
        """The JSON object for the decode engine; empty where it needs none, which means as well
        that the prefill engine keeps nothing for it.

        answered: the prefill engine's answer. Raises NoHandOverError.
        """
