"""What can be found out before anything starts, so that a run does not end in the middle for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from loadgen.cli.values import OptionsError
from loadgen.live.compare import DIRECT
from loadgen.live.gateway import EXACT_ARMS
from router.policies import load_policy


def check_policies(arms: Sequence[str]) -> None:
    """Every arm is a policy that the gateway knows, or one of ours. Raises OptionsError."""
    for arm in arms:
        if arm == DIRECT:
            continue
        try:
            load_policy(EXACT_ARMS.get(arm, arm))
        except ValueError as error:
            raise OptionsError(
                f"--policies: {error}; or {', '.join((DIRECT, *EXACT_ARMS))}"
            ) from error


def check_writable(option: str, path: Path) -> None:
    """A file can be written there. Raises OptionsError."""
    if path.is_dir():
        raise OptionsError(f"{option} {path}: is a folder, name a file in it")
    if path.exists():
        if not os.access(path, os.W_OK):
            raise OptionsError(f"{option} {path}: may not be written")
    elif not path.parent.is_dir():
        raise OptionsError(f"{option} {path}: there is no folder {path.parent}")
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        raise OptionsError(f"{option} {path}: nothing may be written in {path.parent}")
