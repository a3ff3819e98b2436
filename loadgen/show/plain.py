"""Text as it is: names, errors and paths of users may look like rich's markup or emoji codes."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def say(console: Console, text: str, style: str = "", *, soft_wrap: bool = True) -> None:
    """Print a line. With soft_wrap the terminal breaks long ones, else they are broken at words."""
    console.print(Text(text, style=style), soft_wrap=soft_wrap)
