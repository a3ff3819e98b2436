"""Records that other libraries read: parquet files, and data sets of the Hugging Face hub."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadgen.workloads.traces.recorded import TraceError
from loadgen.workloads.traces.source import Kind, Source

HUB = "hf:"
_BATCH = 256


class Rows(Source):
    """A source whose records come from a library; its kind is jsonl, which they stand for."""

    def __init__(self, path: Path, rows: Callable[[], Iterator[Mapping[str, Any]]]) -> None:
        self._rows_of = rows
        super().__init__(path)

    @property
    def is_cut_off(self) -> bool:
        """A library reads whole rows or none."""
        return False

    def _look(self) -> Kind:
        first = next(self._rows_of(), None)
        if first is None:
            raise TraceError(f"{self.path} is empty")
        self.line = str(dict(first))[:300]
        return "jsonl"

    def _place(self, number: int) -> str:
        return f"row {number}"

    def _raw_bytes(self) -> Iterator[tuple[int, bytes | Mapping[str, str]]]:
        for number, row in enumerate(self._rows_of(), 1):
            yield number, {name: value for name, value in row.items() if value is not None}


def events(folder: Path, files: Sequence[Path]) -> Source:
    """A conversation whose events are files of their own. Raises TraceError."""

    def rows() -> Iterator[Mapping[str, Any]]:
        for file in files:
            try:
                yield msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
            except msgspec.MsgspecError as error:
                raise TraceError(f"{file}: {error}") from error

    return Rows(folder, rows)


def parquet(path: Path) -> Source:
    """A parquet file, in batches. Raises TraceError."""
    try:
        library: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise TraceError(f"{path} is parquet, which needs a library: pip install pyarrow") from None

    def rows() -> Iterator[Mapping[str, Any]]:
        try:
            with library.ParquetFile(path) as file:
                for batch in file.iter_batches(_BATCH):
                    yield from batch.to_pylist()
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise TraceError(f"{path} is not whole, or no parquet: {error}") from error

    return Rows(path, rows)


def hub(spec: str) -> Source:
    """hf:NAME or hf:NAME/SUBSET@SPLIT, streamed. Raises TraceError."""
    name, _, split = spec.removeprefix(HUB).partition("@")
    owner, _, rest = name.partition("/")
    data_set, _, subset = rest.partition("/")
    try:
        library: Any = importlib.import_module("datasets")
    except ImportError:
        raise TraceError(
            f"{spec} needs Hugging Face's library: pip install datasets, or download the data set "
            "and name a file of it"
        ) from None
    called = f"{owner}/{data_set}" if data_set else owner

    def rows() -> Iterator[Mapping[str, Any]]:
        yield from library.load_dataset(
            called, subset or None, split=split or "train", streaming=True
        )

    try:
        return Rows(Path(spec), rows)
    except TraceError:
        raise
    except Exception as error:  # the library raises whatever its many loaders do
        raise TraceError(f"{spec}: {type(error).__name__}: {error}") from error
