"""Errors that say why the router cannot tokenise a prompt itself."""

from __future__ import annotations


class UnrenderedError(Exception):
    """This prompt is left to the byte-block index. `word` is a metric label, one of a few."""

    def __init__(self, word: str, text: str) -> None:
        super().__init__(text)
        self.word = word


class ModelError(Exception):
    """A model's tokenizer or template cannot be used; its text says why and what to do."""
