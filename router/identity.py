"""Who this router is: what its forwarded requests and its own probes carry in `Via`."""

from __future__ import annotations

import os
from typing import Final

GIVEN: Final = "SUPERVISED_WARMROUTE_NAME"
"""Set by a supervisor for its workers, which are one router."""

PSEUDONYM: Final = os.environ.get(GIVEN) or f"warmroute-{os.urandom(5).hex()}"
"""Another one for each router and start: RFC 9110, 7.6.3. One that comes back has gone in a
circle."""

VIA: Final = f"1.1 {PSEUDONYM}"
