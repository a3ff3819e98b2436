"""Every request as a row: jsonl, or parquet where pyarrow is installed.

The first line (of parquet, the schema's metadata) is the results without arms; each other line is
one request. From them all that a results file says can be made again, but for gaps between tokens,
savings and the reuse funnel, which are not in a request's row.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from loadgen.results.bootstrap import against_first
from loadgen.results.conclusion import conclude
from loadgen.results.metrics import summarise
from loadgen.results.records import NO_TIME, UNKNOWN, Records
from loadgen.results.schema import Results, ResultsError

VERSION = 1
PARQUET = ".parquet"
_META = b"warmroute"
_BATCH = 20_000


class RunRecords(NamedTuple):
    """One run of one arm."""

    arm: str
    load: float
    repeat: int
    records: Records


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request. Times are seconds from the run's start after its warm-up; None where there was
    none. Counts are None where the server did not tell."""

    arm: str
    session: int
    step: int
    scheduled: float
    sent: float
    first: float | None
    end: float | None
    tokens: int
    possible_tokens: int
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    replica: str = ""
    decision: str = ""
    error: str = ""
    load: float = 0.0
    repeat: int = 0


class Head(msgspec.Struct):
    """What all rows have in common."""

    records: int
    results: Results
    objectives_ms: dict[str, float] = {}
    replicas: list[str] = []
    """Those that must appear even if nothing reached them."""


def rows(runs: Iterable[RunRecords]) -> Iterator[Row]:
    """All requests of all runs."""
    for arm, load, repeat, each in runs:
        for place in range(len(each)):
            yield Row(
                arm,
                each.session[place],
                each.step[place],
                each.scheduled[place],
                each.sent[place],
                _time(each.first[place]),
                _time(each.end[place]),
                each.tokens[place],
                each.possible_tokens[place],
                _count(each.prompt_tokens[place]),
                _count(each.cached_tokens[place]),
                _count(each.output_tokens[place]),
                each.replicas.names[each.replica[place]],
                each.decisions.names[each.decision[place]],
                each.reasons.names[each.reason[place]],
                load,
                repeat,
            )


def _time(value: float) -> float | None:
    return None if math.isnan(value) else value


def _count(value: int) -> int | None:
    return None if value == UNKNOWN else value


def write_records(
    results: Results, objectives_ms: dict[str, float], runs: Iterable[RunRecords], path: Path
) -> None:
    """As the path's ending says. Raises OSError, and ResultsError without pyarrow."""
    bare = msgspec.structs.replace(results, arms=[], differences=[], conclusion="")
    named = [[replica.name for replica in arm.replicas] for arm in results.arms]
    same = named[0] if named and all(each == named[0] for each in named) else []
    head = Head(VERSION, bare, dict(objectives_ms), same)
    if path.suffix == PARQUET:
        _write_parquet(head, rows(runs), path)
        return
    with path.open("wb") as file:
        file.write(msgspec.json.encode(head) + b"\n")
        for row in rows(runs):
            file.write(msgspec.json.encode(row) + b"\n")


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ResultsError(f"{path}: parquet needs a library: pip install pyarrow") from None


def _write_parquet(head: Head, found: Iterator[Row], path: Path) -> None:
    arrow, parquet = _pyarrow(path)
    kinds = {"int": arrow.int64(), "float": arrow.float64(), "str": arrow.string()}
    fields = [
        (name, kinds[str(kind).partition(" ")[0]]) for name, kind in Row.__annotations__.items()
    ]
    meta = {_META: msgspec.json.encode(head)}
    schema = arrow.schema(fields, metadata=meta)
    with parquet.ParquetWriter(path, schema) as writer:
        batch: list[dict[str, Any]] = []
        for row in found:
            batch.append(msgspec.structs.asdict(row))
            if len(batch) == _BATCH:
                writer.write_table(arrow.Table.from_pylist(batch, schema=schema))
                batch.clear()
        writer.write_table(arrow.Table.from_pylist(batch, schema=schema))


def is_records(path: Path) -> bool:
    """The file has requests in it, not results. Raises OSError."""
    with path.open("rb") as file:
        return file.read(12).startswith((b"PAR1", b'{"records":'))


def read_records(path: Path) -> tuple[Head, list[RunRecords]]:
    """What write_records wrote. Raises ResultsError, which names the line, and OSError."""
    head, found = _parquet(path) if _is_parquet(path) else _jsonl(path)
    if head.records != VERSION:
        raise ResultsError(f"{path} has version {head.records}, this program reads {VERSION}")
    runs: dict[tuple[float, str, int], Records] = {}
    for row in found:
        records = runs.setdefault((row.load, row.arm, row.repeat), Records())
        records.add(
            session=row.session,
            step=row.step,
            scheduled=row.scheduled,
            sent=row.sent,
            first=NO_TIME if row.first is None else row.first,
            end=NO_TIME if row.end is None else row.end,
            tokens=row.tokens,
            possible_tokens=row.possible_tokens,
            prompt_tokens=UNKNOWN if row.prompt_tokens is None else row.prompt_tokens,
            cached_tokens=UNKNOWN if row.cached_tokens is None else row.cached_tokens,
            output_tokens=UNKNOWN if row.output_tokens is None else row.output_tokens,
            replica=row.replica,
            reason=row.error,
            decision=row.decision,
        )
    return head, [RunRecords(arm, load, repeat, own) for (load, arm, repeat), own in runs.items()]


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _parquet(path: Path) -> tuple[Head, Iterator[Row]]:
    _, parquet = _pyarrow(path)
    file = parquet.ParquetFile(path)
    meta = (file.schema_arrow.metadata or {}).get(_META)
    if meta is None:
        raise ResultsError(f"{path} is no file that --records wrote")

    def found() -> Iterator[Row]:
        for batch in file.iter_batches(_BATCH):
            for row in batch.to_pylist():
                yield msgspec.convert(row, Row)

    return msgspec.json.decode(meta, type=Head), found()


def _jsonl(path: Path) -> tuple[Head, Iterator[Row]]:
    with path.open("rb") as file:
        first = file.readline()
    try:
        head = msgspec.json.decode(first, type=Head)
    except msgspec.MsgspecError as error:
        raise ResultsError(f"{path} is no file that --records wrote: {error}") from error

    def found() -> Iterator[Row]:
        decoder = msgspec.json.Decoder(Row)
        with path.open("rb") as file:
            file.readline()
            for number, line in enumerate(file, 2):
                try:
                    yield decoder.decode(line)
                except msgspec.MsgspecError as error:
                    raise ResultsError(f"{path} line {number}: {error}") from error

    return head, found()


def results_again(path: Path) -> Results:
    """Results from requests alone. Raises ResultsError and OSError."""
    head, runs = read_records(path)
    results = head.results
    loads = list(dict.fromkeys(run.load for run in runs))
    for load in loads:
        by_arm: dict[str, list[Records]] = {}
        for run in runs:
            if run.load == load:
                by_arm.setdefault(run.arm, []).append(run.records)
        results.arms += [
            summarise(
                name,
                *own,
                objectives_ms=head.objectives_ms or None,
                replicas=head.replicas,
                load=load,
            )
            for name, own in by_arm.items()
        ]
        results.differences += against_first(by_arm, load=load)
    results.conclusion = conclude(results.arms, results.differences, results.axis)
    return results
