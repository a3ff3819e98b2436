"""Where a policy of one's own is imported from."""

from __future__ import annotations

import os
import sys


def from_working_directory(policy: str) -> None:
    """Let an import path, "package.module:Class", be found in the working directory too."""
    if ":" in policy and os.getcwd() not in sys.path:
        # A console script's path lacks the working directory. Last, so that it hides nothing.
        sys.path.append(os.getcwd())
