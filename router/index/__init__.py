"""The index: which replica holds which prefix, and how deep. In memory, without I/O."""

from router.index.tree import ByteIndex

__all__ = ["ByteIndex"]
