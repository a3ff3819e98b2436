"""Prompts as tests place them, without a body to parse."""

from __future__ import annotations

from typing import Any

from router.prompt import Prompt
from router.types import Chain


def prompt_of(
    chain: Chain, size: int, model: str = "m", *, stream: bool = True, **fields: Any
) -> Prompt:
    """A prompt of a chain and its canonical bytes."""
    return Prompt(model=model, chain=chain, size=size, stream=stream, **fields)
