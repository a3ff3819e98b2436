"""A shell for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from quickstart_world import Shell


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    one = Shell(tmp_path)
    yield one
    one.close()
