"""Workloads by name, and the types they are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from loadgen.suggest import did_you_mean
from loadgen.workloads.adapters import Adapters
from loadgen.workloads.agent import Agent
from loadgen.workloads.arrivals import Arrivals, Closed, Fixed, Poisson, Ramp, Traced
from loadgen.workloads.bound import UpperBound
from loadgen.workloads.chain import chain, chain_at
from loadgen.workloads.chat import Chat
from loadgen.workloads.files import Mooncake, Replay, of_known_log
from loadgen.workloads.mix import Mix
from loadgen.workloads.plan import Plan
from loadgen.workloads.single import LADDER, Burst, Hot, Rag, SharedPrefix, Unique
from loadgen.workloads.traces import HUB, TraceError, open_trace
from loadgen.workloads.types import Prompt, Role, Segment, Session, Step, Workload

__all__ = [
    "NAMES",
    "Arrivals",
    "Closed",
    "Fixed",
    "Mooncake",
    "Plan",
    "Poisson",
    "Prompt",
    "Ramp",
    "Replay",
    "Role",
    "Segment",
    "Session",
    "Step",
    "TraceError",
    "Traced",
    "UpperBound",
    "Workload",
    "WorkloadError",
    "chain",
    "chain_at",
    "make",
]


class WorkloadError(ValueError):
    """A workload that cannot be made from what was asked for."""


_MADE: dict[str, Workload] = {
    "adapters": Adapters(),
    "agent": Agent(),
    "chat": Chat(),
    "shared-prefix": SharedPrefix(),
    "ladder": LADDER,
    "rag": Rag(),
    "hot": Hot(),
    "burst": Burst(),
    "unique": Unique(),
}
_FROM_FILE: dict[str, Callable[..., Workload]] = {"mooncake": Mooncake, "replay": Replay}

NAMES = (*_MADE, "mix:NAME=WEIGHT,...", "a trace, prompts or a log: FILE, FOLDER or hf:NAME")


def make(
    spec: str,
    settings: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
) -> Workload:
    """A workload from its name, such as agent or mix:agent=3,chat=1, or from a file, whose format
    is found out by looking at it; mooncake:FILE and replay:FILE say it beforehand.

    settings replace the workload's numbers by name; for a mix they are written part.name. columns
    name those of a table that is of no format that is known. Raises WorkloadError, which names what
    is wrong and what there is, and TraceError for a file that cannot be read.
    """
    settings = dict(settings or {})
    if spec not in _MADE and (spec.startswith(HUB) or Path(spec).exists()):
        return _changed(_from_file(spec, columns or {}), settings)
    if columns:
        raise WorkloadError(f"--columns are of a file, which {spec!r} is not")
    name, _, argument = spec.partition(":")
    if name == "mix":
        return _mix(argument, settings)
    if name in _FROM_FILE:
        if not argument or not Path(argument).is_file():
            raise WorkloadError(_no_file(argument, f": write {name}:FILE"))
        return _changed(_FROM_FILE[name](path=argument), settings)
    if name not in _MADE or argument:
        if "/" in spec or Path(spec).suffix:
            raise WorkloadError(_no_file(spec))
        like = did_you_mean(spec, (*_MADE, *_FROM_FILE))
        raise WorkloadError(f"unknown workload {spec!r}{like or ':'} use one of {', '.join(NAMES)}")
    return _changed(_MADE[name], settings)


def _no_file(path: str, more: str = "") -> str:
    if "://" in path:
        return (
            f"{path!r} is a URL, and traces are read from files: download it and name the file; "
            "a data set of Hugging Face's hub is hf:OWNER/NAME"
        )
    return f"no file {path!r}{more}"


def _from_file(path: str, columns: Mapping[str, str]) -> Workload:
    known = None if columns else of_known_log(path)
    return known or open_trace(path, columns)


def _changed(workload: Workload, settings: Mapping[str, str]) -> Workload:
    if not settings:
        return workload
    kind = type(workload)
    fields = {name: getattr(workload, name) for name in getattr(kind, "__struct_fields__", ())}
    unknown = sorted(set(settings) - set(fields))
    if unknown:
        raise WorkloadError(
            f"{workload.name} has no setting {unknown[0]!r}{did_you_mean(unknown[0], fields)}; "
            f"it has {', '.join(fields)}"
        )
    try:
        return msgspec.convert({**fields, **settings}, kind, strict=False)
    except msgspec.ValidationError as error:
        # In msgspec's words, "Expected `int` >= 1 - at `$.steps`".
        why, _, where = str(error).partition(" - at `$.")
        raise WorkloadError(f"{workload.name}: {where.rstrip('`')}: {why}") from error


def _mix(argument: str, settings: Mapping[str, str]) -> Workload:
    parts: list[tuple[Workload, float]] = []
    for part in filter(None, argument.split(",")):
        name, _, weight = part.partition("=")
        own = {
            key.removeprefix(f"{name}."): value
            for key, value in settings.items()
            if key.startswith(f"{name}.")
        }
        try:
            parts.append((make(name, own), float(weight or "1")))
        except ValueError as error:
            raise WorkloadError(f"mix: {part!r}: {error}") from error
    if not parts or any(not 0 < weight < math.inf for _, weight in parts):
        raise WorkloadError("a mix needs parts with weights above 0, such as mix:agent=3,chat=1")
    strays = [key for key in settings if key.partition(".")[0] not in {p.name for p, _ in parts}]
    if strays:
        raise WorkloadError(f"mix has no setting {strays[0]!r}: write PART.NAME=VALUE")
    return Mix(parts=tuple(parts))
