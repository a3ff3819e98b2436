"""What the rest of the gateway needs to know of a request body."""

from __future__ import annotations

from typing import Final

import msgspec

from router.types import Chain


class Api:
    """The API families a body may belong to."""

    CHAT: Final = "chat"
    COMPLETIONS: Final = "completions"
    RESPONSES: Final = "responses"
    MESSAGES: Final = "messages"


class Prompt(msgspec.Struct, gc=False):
    """One request body, as far as routing needs it."""

    model: str
    """The model or adapter asked for; empty when the client named none."""
    chain: Chain
    """Hashes of the prompt's full blocks (router.prompt.spans); a partial last block has none."""
    size: int
    """Canonical bytes of the prompt, of all prompts when the body holds several."""
    stream: bool
    key: str
    """What names the session: prompt_cache_key, else session_id, else user; empty without any."""
    output_limit: int
    """The most tokens the client lets the answer have; 0 when it did not say."""
    usage_offset: int
    """Where in the body ``"stream_options":{"include_usage":true},`` may be put in; -1: nowhere."""


class PromptError(Exception):
    """The body cannot be served by any engine: answer 400 with ``message`` and ``param``."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
