"""What a simulated replica imitates, as the command line names it."""

from __future__ import annotations

from pathlib import Path

from loadgen.engine import PRESETS, EngineParams
from loadgen.engine.file import read_engine
from loadgen.replicas.fleet import QUICK
from loadgen.suggest import did_you_mean

NAMES = (QUICK.name, *PRESETS)
WHAT = f"{', '.join(NAMES)}, or a file that calibrate wrote"


def named_engine(name: str) -> EngineParams:
    """A preset by its name, else the file of that name. Raises ValueError that lists the names or
    says what is wrong with the file, and OSError for one that cannot be read."""
    if name == QUICK.name:
        return QUICK
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if path.suffix or path.exists() or path.name != name:
        return read_engine(path)
    like = did_you_mean(name, NAMES)
    raise ValueError(f"{name!r} is neither a preset nor a file{like or ':'} use one of {WHAT}")
