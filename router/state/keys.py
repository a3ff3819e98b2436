"""The keys in Redis. One hash tag for all: a cluster keeps them in one slot, on one server."""

from __future__ import annotations

from router.state.cache_snapshots import Position


class Keys:
    """Names made of the prefix."""

    def __init__(self, prefix: str) -> None:
        tag = "{" + prefix + "}"
        self.facts = f"{tag}:facts"
        """Stream of batches; field f."""
        self.position = f"{tag}:position"
        """Where in the stream to begin after having read the maps."""
        self.maps = f"{tag}:maps"
        """Hash: replica's name -> "blocks bytes milliseconds" of its map."""
        self.routers = f"{tag}:routers"
        """Hash: router -> what it says of itself, JSON."""
        self.epoch = f"{tag}:epoch"
        """Changes when Redis was emptied."""
        self.keeper = f"{tag}:keeper"
        """The router that writes the maps; expires."""
        self._map = f"{tag}:map:"

    def map(self, replica: str) -> str:
        """All that a replica holds."""
        return self._map + replica


def position(entry: object) -> Position:
    """An id of the stream as numbers; (0, 0) for what is none."""
    if not isinstance(entry, bytes):
        return (0, 0)
    first, _, second = entry.partition(b"-")
    try:
        return int(first), int(second or 0)
    except ValueError:
        return (0, 0)


def position_text(at: Position) -> str:
    """A position as the id of a stream's entry."""
    return f"{at[0]}-{at[1]}"
