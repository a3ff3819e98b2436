"""Engine parameters to a file and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadgen.engine import EngineParams
from loadgen.engine.file import EngineFile, EngineFileError, read_engine, write_engine

PARAMS = EngineParams(name="calibrated", num_blocks=77, overhead_token_seconds=2e-6)


def changed(path: Path, **changes: Any) -> Path:
    write_engine(path, EngineFile(PARAMS))
    held = json.loads(path.read_text())
    held["params"].update(changes)
    path.write_text(json.dumps(held))
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert read_engine(changed(tmp_path / "engine.json")) == PARAMS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prefill_rate", "fast"),
        ("prefill_rate", 0),
        ("num_blocks", 1.5),
        ("overhead_seconds", -1),
        ("prefil_rate", 1.0),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, field: str, value: Any) -> None:
    path = changed(tmp_path / "engine.json", **{field: value})
    with pytest.raises(EngineFileError, match=rf"engine\.json: params.*{field}"):
        read_engine(path)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = changed(tmp_path / "engine.json")
    held = json.loads(path.read_text())
    del held["params"]["step_base_seconds"]
    path.write_text(json.dumps(held))
    with pytest.raises(EngineFileError, match=r"params\.step_base_seconds is missing"):
        read_engine(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"params": 3}', "\udcff"])
def test_what_is_no_such_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(EngineFileError, match=r"other\.json: "):
        read_engine(path)
