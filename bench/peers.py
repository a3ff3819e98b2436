"""The suite `proxy` with routers of others beside: python -m bench peers"""

from __future__ import annotations

import sys

from bench.proxy import main

if __name__ == "__main__":
    sys.exit(main(peers=True))
