"""What a metric family says of itself."""

from __future__ import annotations

import msgspec


class Metric(msgspec.Struct, frozen=True):
    """One metric family, as Prometheus calls it."""

    name: str
    kind: str
    """counter, gauge or histogram."""
    unit: str
    help: str
    """One line, for the text format too."""
    labels: tuple[str, ...] = ()
