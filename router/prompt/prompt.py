"""The data that the rest of the gateway takes from a request body."""

from __future__ import annotations

from typing import Final

import msgspec

from router.types import NO_CHAIN, Chain, PromptTokens


class Api:
    """The API families that bodies belong to."""

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
    """Template arguments that were not yet tried on this model."""

    def explain(self, held: float, delivered: float) -> bool:
        """Whether a prompt that was held up to `held`, of which `delivered` was delivered, lost the
        rest to these."""
        if 0 <= self.sure <= delivered * _CLOSE + _BLOCK:
            return True
        return held <= self.tools


_CLOSE: Final = 1.1
"""A tolerance, because bytes give tokens only by the ratio that is usual for the model."""
_BLOCK: Final = 256
"""A tolerance in tokens, because engines deliver only whole blocks."""


MEDIA_BYTES: Final = 2048
"""What an image, a sound or a film weighs in canonical bytes, so that blocks can tell it is there.
Its tokens depend on model and resolution; they are learned (`router.scheduling.learning`)."""


class Prompt(msgspec.Struct, gc=False):
    """One request body, as far as routing needs it. It travels whole, from the parser through the
    placer to the request's record."""

    model: str
    """The model or adapter that the client named; empty when it named none."""
    chain: Chain
    """Hashes of the prompt's full blocks (router.prompt.spans); a partial last block has none."""
    size: int
    """The canonical bytes of the prompt, or of all prompts when the body holds several."""
    stream: bool
    key: str = ""
    """The session's name: prompt_cache_key, else session_id, else user; empty without any."""
    output_limit: int = 0
    """The most tokens the client lets the answer have; 0 when it did not say."""
    usage_offset: int = -1
    """Where ``"stream_options":{"include_usage":true},`` can be inserted into the body; -1:
    nowhere."""
    transfer: bool = False
    """Whether the body may hold fields that ``without_transfer`` removes."""
    own_salt: bytes = b""
    """The JSON of the client's own ``cache_salt``; empty for none."""
    follows: str = ""
    """The id of the stored response or conversation that this continues; empty without one."""
    several: bool = False
    """Whether the client wants several answers, so that the blocks of one serve the others."""
    more: tuple[Chain, ...] = ()
    """The chains of further prompts, when the body holds several."""
    media: tuple[int, ...] = ()
    """Where in the canonical bytes each image, sound or film ends that weighs `MEDIA_BYTES`."""
    doubts: Doubts | None = None
    """Reasons why the chain may differ from the engine's prompt; None without any."""
    tokens: PromptTokens | None = None
    """Its token ids, if exact mode has tokenised it."""
    text: bytes = b""
    """The canonical bytes, until the request was offered to the queue; empty where a body holds
    several prompts, or tokens."""
    arguments: tuple[bytes, ...] = ()
    """What else than messages and tools is in its seed, or may change how it is rendered, as
    ``name=value``."""
    compares_as: str = ""
    """The API whose words the client asks for a diagnosis in: ``anthropic`` or ``openai``; empty
    where it asks for none."""
    compares_with: str = ""
    """The id of the answer that it is to be compared with; empty for none."""
    priority: int | None = None
    """What the body says of its priority: -1 high, 0, 1 low; None when it says nothing."""


NO_PROMPT: Final = Prompt(model="", chain=NO_CHAIN, size=0, stream=False)
"""Stands for a request that is placed by load alone. It is shared, so nobody may change it."""


class PromptError(Exception):
    """No engine can serve the body: answer 400 with ``message`` and ``param``."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
