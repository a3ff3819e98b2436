"""The `warmroute-loadgen` command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0 fine, 1 it could not run, 2 bad options, 130 on Ctrl-C or
    SIGTERM."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # Here, so that Ctrl-C while it loads ends as it does later.
        from loadgen.cli.commands import run
        from loadgen.cli.start import START

        if not (sys.argv[1:] if arguments is None else arguments):
            print(START)
            return 0
        return run(arguments)
    except KeyboardInterrupt:
        print("Stopped; nothing is left running.", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
