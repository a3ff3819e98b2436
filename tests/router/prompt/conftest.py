"""What the tests of prompts share."""

from __future__ import annotations

from array import array
from typing import Any

import pytest


@pytest.fixture
def written(monkeypatch):
    """The canonical bytes of each prompt parsed, in place of hashes of their full blocks only."""
    seen: list[tuple[int, bytes]] = []

    def keep(text: bytes, seed: int) -> Any:
        seen.append((seed, text))
        return array("Q")

    for family in ("chat", "messages", "responses", "completions"):
        monkeypatch.setattr(f"router.prompt.{family}.chain", keep)
    return seen
