"""What can be found out before anything starts, so that a run does not end in the middle for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from loadgen.cli.values import OptionsError
from loadgen.live.compare import DIRECT
from loadgen.live.gateway import EXACT_ARMS
from loadgen.simulate.checked import try_policy
from loadgen.suggest import did_you_mean
from router.policies import BUILT_IN


def check_policies(arms: Sequence[str]) -> None:
    """Every arm is a policy that the gateway knows and that works, or one of ours. Raises
    OptionsError, and PolicyFailedError for what a policy's own code does."""
    for arm in arms:
        if arm == DIRECT:
            continue
        if arm in BUILT_IN or arm in EXACT_ARMS:
            continue
        known = (*sorted(BUILT_IN), DIRECT, *EXACT_ARMS)
        try:
            if ":" in arm:
                try_policy(arm)
                continue
        except ValueError as error:
            raise OptionsError(f"--policies: {error}") from error
        raise OptionsError(
            f"--policies: {arm!r} is not known{did_you_mean(arm, known)}; use {', '.join(known)}, "
            'or the import path of your own as "package.module:Class"'
        )


def check_writable(option: str, path: Path) -> None:
    """A file can be written there. Raises OptionsError."""
    if path.is_dir():
        raise OptionsError(f"{option} {path}: is a folder; name a file in it")
    if path.exists():
        if not os.access(path, os.W_OK):
            raise OptionsError(f"{option} {path}: no permission to write it")
    elif not path.parent.is_dir():
        raise OptionsError(f"{option} {path}: create the folder {path.parent} first")
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        raise OptionsError(f"{option} {path}: no write permission in {path.parent}")
