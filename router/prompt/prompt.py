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


class Doubts(msgspec.Struct, gc=False, frozen=True):
    """Where the model's template may render a prompt in another way than is thought, since the
    engine could not be asked. Sizes in canonical bytes."""

    sure: int = 0
    """What stands before all such places; -1 where the place of the tools is all there is."""
    tools: int = 0
    """Up to the end of the tools, whose place is not sure; 0 without any."""
    unknown: tuple[bytes, ...] = ()
    """Template arguments that were not tried on this model."""

    def explain(self, held: float, delivered: float) -> bool:
        """Whether a prompt that was held up to `held`, of which `delivered` was delivered, lost the
        rest to these."""
        if 0 <= self.sure <= delivered * _CLOSE + _BLOCK:
            return True
        return held <= self.tools


_CLOSE: Final = 1.1
"""Tokens are told in bytes by what is usual for the model."""
_BLOCK: Final = 256
"""Engines deliver whole blocks."""


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
    transfer: bool = False
    """Whether the body may hold fields that ``without_transfer`` takes out."""
    follows: str = ""
    """The id of the stored response or conversation that this continues; empty for none."""
    several: bool = False
    """More than one answer is asked for, so that one's blocks serve the others."""
    more: tuple[Chain, ...] = ()
    """The chains of the prompts after the first, when the body holds several."""
    doubts: Doubts | None = None
    """Where its chain may not follow the engine's prompt; None where it should."""


class PromptError(Exception):
    """The body cannot be served by any engine: answer 400 with ``message`` and ``param``."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
