"""Which replica holds which prefix, how deep. In memory, no I/O."""

from router.index.tree import ByteIndex

__all__ = ["ByteIndex"]
