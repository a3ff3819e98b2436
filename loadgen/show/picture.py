"""What the terminal shows at the end of a command, as an SVG file."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from loadgen.results.schema import Results
from loadgen.show.tables import show

COLUMNS = 100
FONT_FACE = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)
"""rich names a font to be loaded from elsewhere; the reader's own monospaced one does, since every
piece of text carries its width."""


def write_svg(results: Results, path: Path, command: str) -> None:
    """Draw a terminal in which the command has just ended. Raises OSError."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(f"$ {command}", style="bold green", highlight=False)
    # Soft-wrapped lines would run out of the picture.
    show(results, console, soft_wrap=False, brief=True)
    drawn = console.export_svg(title=command)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FONT_FACE.sub("", drawn), encoding="utf-8")
