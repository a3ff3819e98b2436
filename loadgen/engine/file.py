"""Engine parameters in a file: what ``calibrate`` writes and ``--preset`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from loadgen.engine.params import EngineParams


class EngineFileError(ValueError):
    """A file that does not hold an engine's parameters; says which file, which field and why."""


class EngineFile(msgspec.Struct, frozen=True):
    """What the file holds. Only the parameters are read again; the rest says how good they are."""

    params: EngineParams
    measured_ttft_p50_seconds: float | None = None
    simulated_ttft_p50_seconds: float | None = None


def write_engine(path: Path, held: EngineFile) -> None:
    """As JSON. Raises OSError."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(held), indent=2) + b"\n")


def read_engine(path: Path) -> EngineParams:
    """The parameters. Raises EngineFileError, also for a field that is missing or unknown: a rate
    must not become a default's by a slip of the pen; and OSError."""
    try:
        held = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineFileError(f"{path}: this is no JSON: {error}") from None
    params: Any = held.get("params") if isinstance(held, dict) else None
    if not isinstance(params, dict):
        raise EngineFileError(f'{path}: no object "params" in it: is it a file calibrate wrote?')
    fields = EngineParams.__struct_fields__
    for name in fields:
        if name not in params:
            raise EngineFileError(f"{path}: params.{name} is missing")
    for name in params:
        if name not in fields:
            raise EngineFileError(
                f"{path}: params.{name} is no engine parameter; they are {', '.join(fields)}"
            )
    try:
        return msgspec.convert(params, EngineParams)
    except msgspec.ValidationError as error:
        # The field is in msgspec's own words ("... - at `$.num_blocks`") or in ours.
        raise EngineFileError(f"{path}: params: {error}".replace("`$.", "`params.")) from None
