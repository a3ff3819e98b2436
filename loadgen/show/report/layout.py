"""A section of the page, and the grid its charts stand in."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def section(title: str, how: str, content: str, anchor: str = "") -> str:
    """With its heading and how it is to be read; nothing without content."""
    if not content:
        return ""
    explained = f'<p class="how">{escape(how)}</p>' if how else ""
    marked = f' id="{escape(anchor)}"' if anchor else ""
    return f"<section{marked}><h2>{escape(title)}</h2>{explained}{content}</section>"


def charts(drawn: Sequence[str]) -> str:
    """Beside each other where the page is wide enough."""
    made = "".join(drawn)
    return f'<div class="charts">{made}</div>' if made else ""
