"""What to say when an address cannot be listened on."""

from __future__ import annotations

import errno


def cannot_listen(error: OSError) -> str:
    """The error, and what mends it where the address is taken or not this machine's."""
    mends = {
        errno.EADDRINUSE: "end what listens there, or give another --port or --admin-port",
        errno.EADDRNOTAVAIL: "give an address of this machine as --host or --admin-host",
        errno.EACCES: "give a --port or --admin-port from 1024 on, or the right to use this one",
    }
    mend = mends.get(error.errno or 0)
    return f"cannot listen: {error}" + (f"; {mend}" if mend else "")
