"""NIXL's pull mode or Mooncake, as each prefill engine turns out to have."""

from __future__ import annotations

from typing import Final

from router.disaggregation.bodies import Prefilled
from router.disaggregation.connector import NoHandOverError, Prefiller
from router.disaggregation.mooncake import Mooncake, transfer_id
from router.disaggregation.nixl import Nixl


class Either:
    """A `Connector`: an engine with a bootstrap server has Mooncake, any other one NIXL."""

    names_legs: Final = False

    def __init__(self, mooncake: Mooncake) -> None:
        self._nixl = Nixl()
        self._mooncake = mooncake
        self._without: set[str] = set()
        """Hosts without a bootstrap server."""

    @property
    def lease_seconds(self) -> float:
        """The shorter one."""
        return self._nixl.lease_seconds

    async def meet(self, prefiller: Prefiller) -> None:
        """Look for a bootstrap server."""
        if prefiller.host in self._without:
            return
        try:
            await self._mooncake.meet(prefiller)
        except NoHandOverError:
            self._without.add(prefiller.host)

    def forget(self, host: str) -> None:
        """It may come back with another connector."""
        self._without.discard(host)
        self._mooncake.forget(host)

    def asking(self, transfer: str) -> bytes:
        """NIXL's, and the name that Mooncake needs, which NIXL does not mind."""
        return b'%b,"transfer_id":"%b"}' % (
            self._nixl.asking(transfer)[:-1],
            transfer_id(transfer).encode(),
        )

    def telling(self, answered: Prefilled, transfer: str, prefiller: Prefiller) -> bytes:
        """Raises NoHandOverError."""
        if answered.params or prefiller.host in self._without:
            if not answered.params:
                self.forget(prefiller.host)  # was its server up later than it?
            return self._nixl.telling(answered, transfer, prefiller)
        return self._mooncake.telling(answered, transfer, prefiller)
