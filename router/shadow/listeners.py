"""The placer tells one listener; this is how it tells several."""

from __future__ import annotations

from router.scheduling.placer import Placement, PlacementListener


class Listeners:
    """Several listeners as one. Implements ``PlacementListener``."""

    def __init__(self, *listeners: PlacementListener) -> None:
        self._all = listeners

    def routed(self, placement: Placement) -> None:
        for each in self._all:
            each.routed(placement)

    def first_token(self, placement: Placement) -> None:
        for each in self._all:
            each.first_token(placement)

    def finished(self, placement: Placement) -> None:
        for each in self._all:
            each.finished(placement)

    def failed(self, placement: Placement) -> None:
        for each in self._all:
            each.failed(placement)
