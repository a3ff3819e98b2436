"""Engines with one store of KV blocks for all: LMCache's server, MooncakeStore, or vLLM's
ExampleConnector over a shared folder.

The prefill engine puts the blocks of each prompt there, and the decode engine looks there for those
that it lacks. Nothing travels in the requests, and no engine keeps anything for another one: the
first leg is a prefill and no more. What the decode engine finds is its own affair, so that one that
finds nothing, or cannot read the store, answers as it does without a first leg.
"""

from __future__ import annotations

from typing import Final

from router.disaggregation.bodies import Prefilled
from router.disaggregation.connector import Prefiller


class Store:
    """A `Connector`."""

    lease_seconds: Final = 60.0
    """A store forgets what was not asked for in a while; how soon is not known."""
    names_legs: Final = False

    async def meet(self, _: Prefiller) -> None:
        """There is nothing to know."""

    def forget(self, _: str) -> None:
        """Nothing is known of engines."""

    def asking(self, _: str) -> bytes:
        """It puts blocks there unasked."""
        return b""

    def telling(self, _answered: Prefilled, _transfer: str, _: Prefiller) -> bytes:
        """It looks there untold."""
        return b""
