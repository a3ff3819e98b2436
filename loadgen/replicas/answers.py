"""One request's answer on its way out: the choices the engine generates and the API that words
them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

from loadgen.engine import Request
from loadgen.replicas.errors import ApiError
from loadgen.replicas.prompts import Job
from loadgen.replicas.tokens import answer_words

if TYPE_CHECKING:
    from loadgen.replicas.connection import Connection


Flow: TypeAlias = tuple[Callable[[bytes], None], bytes, bytes, bytes]
"""Where a stream's tokens are written; what goes before, between and after them."""


class Choice:
    """One prompt's (or one of n) answer."""

    __slots__ = ("answer", "flow", "index", "limited", "request", "seed", "sent")

    def __init__(
        self, answer: Answer, index: int, request: Request, seed: int, limited: bool
    ) -> None:
        self.answer = answer
        self.index = index
        self.request = request
        self.seed = seed
        self.limited = limited
        """The client's limit ends it ("length"), not the model ("stop")."""
        self.sent = 0
        self.flow: Flow | None = None
        """Known once the first token is out, where the others but the last need nothing more."""

    @property
    def text(self) -> str:
        """The text of the complete answer."""
        return b"".join(answer_words(self.seed, 0, self.request.output_tokens)).decode()


class Answer:
    """Everything that one HTTP request gets: all its choices, and their usage."""

    __slots__ = (
        "choices",
        "connection",
        "created",
        "die_after",
        "id",
        "job",
        "open",
        "started",
        "words",
    )

    def __init__(self, connection: Connection, job: Job, name: str, created: int) -> None:
        self.connection = connection
        self.job = job
        self.id = name
        self.created = created
        self.choices: list[Choice] = []
        self.open = 0
        """The number of choices that are not finished."""
        self.started = False
        self.words: ApiFormat
        self.die_after = -1
        """Cut the connection after this many tokens; -1 never."""

    @property
    def anthropic(self) -> bool:
        """Its errors have Anthropic's form."""
        return self.words.ANTHROPIC

    @property
    def followed(self) -> bool:
        """Something happens at every token, not only at the end."""
        return self.job.stream or self.die_after >= 0

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens, once for each prompt however many answers it has."""
        return sum(choice.request.prompt_tokens for choice in self.choices[:: self.job.n])

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the cache held."""
        return sum(choice.request.cached_tokens for choice in self.choices[:: self.job.n])

    @property
    def completion_tokens(self) -> int:
        """Tokens of all finished choices."""
        return sum(choice.request.output_tokens for choice in self.choices)

    def usage(self) -> dict[str, object]:
        """The `usage` object of OpenAI's API."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class ApiFormat(Protocol):
    """One API family's bytes for one answer. Streams are already framed as HTTP chunks."""

    ANTHROPIC: ClassVar[bool]
    """Errors have Anthropic's form, not OpenAI's."""

    def __init__(self, answer: Answer) -> None: ...

    def opening(self) -> bytes:
        """Before the first token of the first choice."""
        ...

    def tokens(self, choice: Choice, end: int, last: bool) -> bytes:
        """Tokens choice.sent..end; ``last`` when the choice ends with them."""
        ...

    def around(self, choice: Choice, /) -> tuple[bytes, bytes] | None:
        """What precedes and follows each token of a choice but the last; None where their events
        differ in more than the token."""
        ...

    def closing(self) -> bytes:
        """The events that follow the end of the last choice."""
        ...

    def failed(self, error: ApiError) -> bytes:
        """The events that end a stream with an error."""
        ...

    def whole(self) -> bytes:
        """The JSON body of an answer that is not streamed."""
        ...


def frame(data: bytes) -> bytes:
    """Data as one chunk of HTTP's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)
