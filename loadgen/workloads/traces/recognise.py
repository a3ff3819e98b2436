"""Which format a file is of, by looking at it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path

from loadgen.workloads.traces.format import Format
from loadgen.workloads.traces.formats import FORMATS
from loadgen.workloads.traces.formats.prompts import by_columns
from loadgen.workloads.traces.recorded import TraceError
from loadgen.workloads.traces.rows import HUB, events, hub, parquet
from loadgen.workloads.traces.source import Source

_EVENT = re.compile(r"^(?:event-)?(\d+)(?:-[\w-]+)?\.json$")
"""OpenHands writes each event of a conversation to a file of its own: 12.json, or
event-00012-ID.json."""
_PARQUET = b"PAR1"


def sources(path: str) -> Iterator[Source]:
    """The files of a trace: one, all in a folder by name, or a data set of the hub."""
    if path.startswith(HUB):
        yield hub(path)
        return
    root = Path(path)
    if not root.is_dir():
        yield open_source(root)
        return
    files = [
        each
        for each in sorted(root.rglob("*"))
        if each.is_file() and not each.name.startswith(".") and each.stat().st_size
    ]
    for folder, inside in groupby(files, key=lambda each: each.parent):
        own = list(inside)
        numbered = [(int(found[1]), each) for each in own if (found := _EVENT.match(each.name))]
        if len(numbered) == len(own):
            # 10.json comes after 9.json.
            yield events(folder, [each for _, each in sorted(numbered)])
        else:
            yield from map(open_source, own)


def cut_off(path: str) -> list[str]:
    """What is left out at the ends of a trace's files, in sentences."""
    cut = [str(source.path) for source in sources(path) if source.is_cut_off]
    return [f"the last line of {', '.join(cut[:3])} is cut off and is left out"] if cut else []


def open_source(path: Path) -> Source:
    """A file, whatever it is packed in. Raises TraceError and OSError."""
    with path.open("rb") as file:
        magic = file.read(4)
    return parquet(path) if magic == _PARQUET else Source(path)


def find(name: str, columns: Mapping[str, str]) -> Format:
    """A format by its name."""
    return by_columns(dict(columns)) if columns else next(f for f in FORMATS if f.name == name)


def recognised(path: str, columns: Mapping[str, str]) -> tuple[Format, Source]:
    """The format of a file, or of the first file in a folder that has one. Raises TraceError,
    which says what was looked for, and what is nearest."""
    known = (by_columns(dict(columns)),) if columns else FORMATS
    seen: list[Source] = []
    for source in sources(path):
        for form in known:
            if form.fits(source):
                return form, source
        seen.append(source)
    if not seen:
        raise TraceError(f"{path} is a folder without any file that is not empty")
    raise TraceError(_unknown(seen[0], known, len(seen)))


def _unknown(source: Source, known: tuple[Format, ...], files: int) -> str:
    """What is told of a file of no known format: what it is and what would help first, all that was
    looked for last."""
    path = f"{source.path}" + (f" and {files - 1} more files" if files > 1 else "")
    if source.kind == "csv" and not source.first:
        return f"{path} has no rows below its first line: {source.line[:200]!r}"
    if source.kind == "csv" and any(map(_is_number, source.fields)):
        return (
            f"{path} is csv whose first line has values and no names of columns: "
            f"{source.line[:200]!r}. Write the names above it; BurstGPT's and Azure's "
            "are known, and --columns time=NAME,prompt_tokens=NAME,output_tokens=NAME tells what "
            "others are"
        )
    said = [f"{path} is {source.kind} of no known format"]
    if source.fields:
        said[0] += f", with the fields {', '.join(source.fields[:12])}"
    if source.fault:
        said.append(f"Its first record cannot be read: {source.fault}")
    if source.kind != "text" and source.first:
        nearest = min(known, key=lambda form: _distance(form, source))
        said.append(f"Nearest is {nearest.title}, which lacks {', '.join(nearest.lacks(source))}")
    said.append(f"Its first line: {source.line[:200]!r}")
    if source.fields:
        said.append(
            "Its columns can be named: --columns prompt=FIELD or prompt_tokens=FIELD, and "
            "time=, output_tokens=, answer=, session="
        )
    said.append(f"Looked for: {', '.join(form.title for form in known)}")
    return ". ".join(said)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _distance(form: Format, source: Source) -> tuple[bool, int, float]:
    """How far a file is from a format: by the fields it lacks, and how much others look like
    them."""
    lacks = form.lacks(source)
    alike = sum(
        max((SequenceMatcher(None, lack, field).ratio() for field in source.fields), default=0.0)
        for lack in lacks
    )
    # One that has all fields, and no other sign, is nearer than one that lacks a field.
    fields = min((len(form.missing(record)) for record in source.first), default=len(lacks))
    return source.kind not in form.kinds, fields, -alike
