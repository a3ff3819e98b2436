"""A trace's file: what it is packed in, how its records lie in it, and a look at the first ones.

Nothing is read as a whole: records are decoded one at a time, also those of one large JSON array.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import importlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, TypeVar, cast

import msgspec

from loadgen.workloads.traces.recorded import TraceError

Kind: TypeAlias = Literal["jsonl", "json list", "json object", "csv", "text"]
_Record = TypeVar("_Record")
_LOOK = 50
"""Records looked at before a format is chosen, fewer where they are large."""
_LOOK_BYTES = 4 << 20
_CHUNK = 1 << 20
_MOST_LINE = 256 << 20
"""Bytes of one record."""
_ANY = msgspec.json.Decoder(Any)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
csv.field_size_limit(_MOST_LINE)


class Source:
    """One file. `kind` and `first` tell what was seen of it."""

    def __init__(self, path: Path) -> None:
        """Raises TraceError for what cannot be opened or decoded, and OSError."""
        self.path = path
        self.line = ""
        """The first line, cut short, for messages."""
        self.fault = ""
        """What keeps the first record from being read."""
        self._between = ","
        """What is between the cells of a csv."""
        self.kind = self._look()
        self.first: list[dict[str, Any]] = []
        try:
            size = 0
            for number, raw in islice(self._raw_bytes(), _LOOK):
                self.first.append(self._decoded(number, raw))
                size += len(raw) if isinstance(raw, bytes) else 0
                if size > _LOOK_BYTES:
                    break
        except TraceError as error:
            # What comes before the fault may be enough to know the format, whose reader then says
            # what is wrong with its name for it.
            if not self.first and self.kind != "text":
                self.kind, self.fault = "text", str(error)

    @property
    def fields(self) -> list[str]:
        """Of the first records, in their order."""
        return list(dict.fromkeys(name for record in self.first for name in record))

    def records(self, kind: type[_Record]) -> Iterator[tuple[int, _Record]]:
        """(number from 1, record) of a type; what does not fit raises TraceError with its line."""
        decoder = msgspec.json.Decoder(kind, strict=False)
        for number, raw in self._raw_bytes():
            try:
                if isinstance(raw, bytes):
                    yield number, _decode(decoder, raw)
                else:
                    yield number, msgspec.convert(raw, kind, strict=False)
            except msgspec.MsgspecError as error:
                if not self._cut_off(raw):
                    raise self.wrong(number, str(error)) from error

    @property
    def is_cut_off(self) -> bool:
        """The last line of a plain file is not whole, as in a log that is being written."""
        if self.kind != "jsonl":
            return False
        with self.path.open("rb") as file:
            if file.read(4).startswith((_GZIP, _ZSTD)):
                return False
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - _CHUNK))
            return self._cut_off(file.read().rpartition(b"\n")[2])

    def texts(self) -> Iterator[tuple[int, str]]:
        """(number from 1, line) as text."""
        with self._reading() as file:
            for number, line in enumerate(io.TextIOWrapper(file, "utf-8", "replace"), 1):
                yield number, line.rstrip("\n")

    def wrong(self, number: int, why: str) -> TraceError:
        """An error about a record."""
        return TraceError(f"{self.path} {self._place(number)}: {why}")

    def open(self) -> BinaryIO:
        """The bytes, unpacked. Raises TraceError."""
        file = self.path.open("rb")
        magic = file.read(4)
        file.seek(0)
        if magic.startswith(_GZIP):
            return cast(BinaryIO, gzip.GzipFile(fileobj=file))
        if magic == _ZSTD:
            try:
                zstandard = importlib.import_module("zstandard")
            except ImportError:
                file.close()
                raise TraceError(
                    f"{self.path} is packed with zstd: pip install zstandard, or unpack "
                    "it with zstd -d"
                ) from None
            reader = zstandard.ZstdDecompressor().stream_reader(file, closefd=True)
            return cast(BinaryIO, io.BufferedReader(reader))
        return file

    @contextmanager
    def _reading(self) -> Iterator[BinaryIO]:
        """The bytes, unpacked; what is wrong with the packing raises TraceError."""
        try:
            with self.open() as file:
                yield file
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise TraceError(f"{self.path} cannot be unpacked: {error}") from error
        except Exception as error:
            # The library's own error has no base class that is known without it.
            if type(error).__module__.partition(".")[0] != "zstandard":
                raise
            raise TraceError(f"{self.path} cannot be unpacked: {error}") from error

    def _cut_off(self, raw: bytes | Mapping[str, Any]) -> bool:
        """A line that ends with the file, in the middle of its JSON."""
        line = self.kind == "jsonl" and isinstance(raw, bytes) and not raw.endswith(b"\n")
        return line and bool(raw) and not _is_json(cast(bytes, raw))

    def _place(self, number: int) -> str:
        return f"line {number}" if self.kind in ("jsonl", "csv", "text") else f"record {number}"

    def _look(self) -> Kind:
        with self._reading() as file:
            line = b"\n"
            while line.isspace():
                line = file.readline(_CHUNK).removeprefix(codecs.BOM_UTF8)
            # One line may be all of a large array, of which the beginning is enough.
            if line.startswith(b"{") and not line.endswith(b"\n"):
                line += file.readline(_MOST_LINE)
            after = file.readline(_LOOK)
        if b"\0" in line:
            raise TraceError(
                f"{self.path} is no text: it is binary, or text that is not UTF-8. "
                "Traces are jsonl, json, csv or a log, plain or packed with gzip or zstd, or "
                "parquet"
            )
        line = line.strip()
        if not line:
            raise TraceError(f"{self.path} is empty: there is no request in it to play")
        self.line = line[:300].decode("utf-8", "replace")
        if line.startswith(b"["):
            inside = line[1:].lstrip() or after.lstrip()
            if inside.startswith(b"]"):
                raise TraceError(f"{self.path} is an empty list")
            return "json list" if inside.startswith(b"{") else "text"
        if line.startswith(b"{"):
            # A record in a line, or one that is broken; else one object over several lines.
            lines = _is_json(line) or after.startswith(b"{")
            return "jsonl" if lines else "json object"
        self._between = max(",;\t", key=self.line.count)
        return "csv" if self._between in self.line else "text"

    def _decoded(self, number: int, raw: bytes | Mapping[str, str]) -> dict[str, Any]:
        if not isinstance(raw, bytes):
            return dict(raw)
        try:
            value = _decode(_ANY, raw)
        except msgspec.MsgspecError as error:
            raise self.wrong(number, str(error)) from error
        if not isinstance(value, dict):
            raise self.wrong(number, "is no JSON object")
        return value

    def _raw_bytes(self) -> Iterator[tuple[int, bytes | Mapping[str, str]]]:
        if self.kind == "csv":
            yield from self._rows()
        elif self.kind == "json list":
            yield from self._elements()
        elif self.kind == "json object":
            with self._reading() as file:
                whole = file.read(_MOST_LINE + 1)
            if len(whole) > _MOST_LINE:
                raise TraceError(f"{self.path}: one JSON object of more than {_MOST_LINE:,} bytes")
            yield 1, whole.removeprefix(codecs.BOM_UTF8)
        elif self.kind == "jsonl":
            with self._reading() as file:
                for number, line in enumerate(file, 1):
                    if not line.isspace():
                        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line

    def _rows(self) -> Iterator[tuple[int, Mapping[str, str]]]:
        with self._reading() as file:
            rows = csv.DictReader(
                io.TextIOWrapper(file, "utf-8-sig", "replace", newline=""), delimiter=self._between
            )
            for row in rows:
                # Cells that are empty are not told; more cells than columns have no name.
                told = {name: cell for name, cell in row.items() if name and cell}
                yield rows.line_num, told

    def _elements(self) -> Iterator[tuple[int, bytes]]:
        """Of a JSON array, each on its own."""
        decoder = json.JSONDecoder()
        with self._reading() as file:
            text = io.TextIOWrapper(file, "utf-8-sig", "replace")
            rest = text.read(_CHUNK).lstrip()[1:]
            number = 0
            while True:
                rest = rest.lstrip().removeprefix(",").lstrip()
                if rest.startswith("]"):
                    return
                try:
                    _, end = decoder.raw_decode(rest)
                except RecursionError as error:
                    raise self.wrong(number + 1, "is nested too deep") from error
                except ValueError as error:
                    # Twice as much each time: an element is then decoded in vain a few times only.
                    more = text.read(max(_CHUNK, len(rest)))
                    if not more or len(rest) > _MOST_LINE:
                        raise self.wrong(number + 1, str(error)) from error
                    rest += more
                    continue
                number += 1
                yield number, rest[:end].encode()
                rest = rest[end:]
                if len(rest) < _CHUNK:
                    rest += text.read(_CHUNK)


def _decode(decoder: msgspec.json.Decoder[_Record], raw: bytes) -> _Record:
    """A record. Half of a surrogate pair, which is no text but stands in many recorded answers
    that were cut, becomes a question mark. Raises MsgspecError."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError as error:
        try:
            read = json.loads(raw)
        except (ValueError, RecursionError):
            raise error from None
    return decoder.decode(json.dumps(read, ensure_ascii=False).encode(errors="replace"))


def _is_json(line: bytes) -> bool:
    try:
        _decode(_ANY, line)
    except msgspec.MsgspecError:
        return False
    return True
