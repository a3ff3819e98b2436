"""How to install what the base installation leaves out."""

from __future__ import annotations

from typing import Final


def _hint(extra: str) -> str:
    # Warmroute is on no package index: its name means nothing to pip, or something else.
    return f"in Warmroute's source folder: pip install '.[{extra}]'"


EXACT: Final = _hint("exact")
KUBERNETES: Final = _hint("kubernetes")
OTEL: Final = _hint("otel")
PICKER: Final = _hint("picker")
JWT: Final = _hint("jwt")
