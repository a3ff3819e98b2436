"""A request body → the chain of block hashes that names its prompt's prefixes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from router.prompt.chat import parse_chat
from router.prompt.completions import parse_completions
from router.prompt.lenient import readable, utf8
from router.prompt.messages import parse_messages
from router.prompt.others import parse_generate, parse_invocations, parse_scoring
from router.prompt.prompt import Api, Prompt, PromptError
from router.prompt.reading import Models, check_model
from router.prompt.responses import parse_responses
from router.prompt.transfer import Transfer, without_transfer

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

__all__ = [
    "PARSERS",
    "Api",
    "Models",
    "Parser",
    "Prompt",
    "PromptError",
    "Transfer",
    "check_model",
    "parse_invocations",
    "readable",
    "utf8",
    "without_transfer",
]
