"""Turns a request body into the chain of block hashes that identifies its prompt's prefixes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from router.prompt.canonical import Models, Transfer, check_model, strings
from router.prompt.chat import calls_memo, parse_chat
from router.prompt.completions import parse_completions
from router.prompt.content import parts_memo, tools
from router.prompt.lenient import NOT_JSON, decoded, readable, utf8
from router.prompt.messages import parse_messages
from router.prompt.others import parse_generate, parse_invocations, parse_scoring
from router.prompt.prompt import NO_PROMPT, Api, Prompt, PromptError
from router.prompt.responses import parse_responses
from router.prompt.transfer import without_transfer

Parser = Callable[[bytes, Models], Prompt]

PARSERS: Final[Mapping[str, Parser]] = {
    "/v1/chat/completions": parse_chat,
    "/v1/completions": parse_completions,
    "/v1/responses": parse_responses,
    "/v1/messages": parse_messages,
    "/inference/v1/generate": parse_generate,
    "/generative_scoring": parse_scoring,
}
"""Each API path's parser: body bytes, and what is known of the models, to Prompt, or
PromptError."""


def memory_bytes() -> int:
    """An estimate of the memory of remembered canonical forms.

    All parsers of a process share them.
    """
    return sum(memo.nbytes for memo in (strings, parts_memo, calls_memo, tools))


__all__ = [
    "NOT_JSON",
    "NO_PROMPT",
    "PARSERS",
    "Api",
    "Models",
    "Parser",
    "Prompt",
    "PromptError",
    "Transfer",
    "check_model",
    "decoded",
    "memory_bytes",
    "parse_invocations",
    "readable",
    "utf8",
    "without_transfer",
]
