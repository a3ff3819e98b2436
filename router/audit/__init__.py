"""What the traffic does to the caches: sessions, changes that keep coming back, and their cost.

`Auditor` is the room's face. It is told of each diagnosed request at its end, and keeps numbers and
hashes, never text.
"""

from router.audit.auditor import Auditor

__all__ = ["Auditor"]
