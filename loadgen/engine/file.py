"""Engine parameters in a file: what ``calibrate`` writes and ``--preset`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from loadgen.engine.params import EngineParams

MAY_LACK = frozenset(
    (
        *("offload_tokens", "offload_token_seconds", "offload_base_seconds"),
        *("max_loras", "lora_load_seconds"),
    )
)
"""Parameters that files of before do not have: no tier, no limit to adapters."""


class EngineFileError(ValueError):
    """A file that does not hold an engine's parameters; says which file, which field and why."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Mixed requests on the live engine and on the model, in seconds and tokens."""

    at_a_time: int
    requests: int
    measured_ttft_p50: float
    simulated_ttft_p50: float
    measured_ttft_p90: float
    simulated_ttft_p90: float
    measured_tpot: float
    """Mean over the answers."""
    simulated_tpot: float
    measured_cached: int
    """All cached tokens that the engine reported."""
    simulated_cached: int
    bunched: int
    """Answers whose tokens came nearly all at once: the engine's processes, or the client, had to
    wait for a processor."""

    @property
    def errors(self) -> tuple[float, float, float]:
        """Simulated over measured, minus 1: of the TTFT's p50 and p90, and of the TPOT."""
        return (
            self.simulated_ttft_p50 / self.measured_ttft_p50 - 1,
            self.simulated_ttft_p90 / self.measured_ttft_p90 - 1,
            self.simulated_tpot / self.measured_tpot - 1,
        )


class EngineFile(msgspec.Struct, frozen=True):
    """What the file holds. Only the parameters are read again; the rest says how good they are."""

    params: EngineParams
    agreements: list[Agreement] = []
    """On requests that the parameters were not fitted to."""


def write_engine(path: Path, held: EngineFile) -> None:
    """Write the parameters to a JSON file. Raises OSError."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(held), indent=2) + b"\n")


def read_engine(path: Path) -> EngineParams:
    """The parameters. Raises EngineFileError, also for a field that is missing or unknown: a rate
    must not become a default's by a slip of the pen; and OSError. A tier may be left out."""
    try:
        held = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineFileError(f"{path}: it is not JSON: {error}") from None
    params: Any = held.get("params") if isinstance(held, dict) else None
    if not isinstance(params, dict):
        raise EngineFileError(f'{path}: no object "params"; give a file that calibrate wrote')
    fields = EngineParams.__struct_fields__
    for name in fields:
        if name not in params and name not in MAY_LACK:
            raise EngineFileError(f"{path}: params.{name} is missing")
    for name in params:
        if name not in fields:
            raise EngineFileError(
                f"{path}: params.{name} is not an engine parameter; those are {', '.join(fields)}"
            )
    try:
        return msgspec.convert(params, EngineParams)
    except msgspec.ValidationError as error:
        # The field is in msgspec's own words ("... - at `$.num_blocks`") or in ours.
        raise EngineFileError(f"{path}: params: {error}".replace("`$.", "`params.")) from None
