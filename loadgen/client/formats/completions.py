"""OpenAI's completions: one text."""

from __future__ import annotations

from loadgen.client.formats.chat import Chat
from loadgen.client.formats.piece import Asked


class Completions(Chat):
    """Tools come first, as chat templates put them."""

    path = "/v1/completions"

    def prompt(self, asked: Asked) -> bytes:
        """All texts one after another; images have no place in it."""
        return b'"prompt":"' + joined(asked) + b'"'


def joined(asked: Asked) -> bytes:
    """A prompt as one text."""
    texts = [piece.description for piece in asked.tools]
    return b" ".join((*texts, *(piece.text for piece in asked.pieces)))
