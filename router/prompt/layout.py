"""The canonical bytes of a chat prompt, in the order in which the model's template renders it.

The readers of the APIs put in what a body has, in the body's order. What templates move or leave
out is noted on the way, and put right at the end: a prompt without any of it costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from router.prompt.canonical import (
    CALL,
    MEDIA,
    MESSAGE,
    Add,
)
from router.prompt.content import Reasoned, Results, weighed
from router.prompt.prompt import Doubts
from router.types import Inline, Reasoning, TemplateTraits, ToolsPlace

Piece = bytes | memoryview | msgspec.Raw

SYSTEM: Final = b'"system"'
DEVELOPER: Final = b'"developer"'
USER: Final = b'"user"'
ASSISTANT: Final = b'"assistant"'


class Layout:
    """Collects the pieces of one prompt. `add` appends one."""

    __slots__ = (
        "_front",
        "_inline",
        "_moved",
        "_reasoned",
        "_tools",
        "_traits",
        "add",
        "media",
        "pieces",
    )

    def __init__(self, traits: TemplateTraits) -> None:
        self.pieces: list[Piece] = []
        self.add: Add = self.pieces.append
        self._traits = traits
        self._tools: bytes = b""
        self._front = 0
        """The place to which system messages move: after those that stand at the front."""
        self._inline = False
        """Whether a system message stands elsewhere than at the front."""
        self.media: tuple[int, ...] = ()
        """See `Prompt.media`; known once `text` was asked for."""
        self._moved: list[Piece] = []
        self._reasoned: list[tuple[int, bytes]] = []
        """Pieces that templates may leave out, in order: where each is, and what stays of it."""

    def tools(self, text: bytes) -> None:
        """Add the tool definitions. Call this before anything else is added."""
        if self._traits.tools is ToolsPlace.FIRST:
            self.add(text)
        elif self._traits.tools is not ToolsPlace.NOWHERE:
            self._tools = text

    def led(self) -> None:
        """Note that all system messages at the front have been added."""
        traits = self._traits
        self._front = len(self.pieces)
        if self._tools and traits.tools is ToolsPlace.AFTER_SYSTEM:
            self.add(self._tools)
            if not traits.known:
                # Templates that want all system messages at the front mostly put the tools before
                # them, so that what is moved comes behind both.
                self._front += 1

    def inline(self, place: Inline) -> Add:
        """The function that adds a system message which does not stand at the front."""
        self._inline = True
        if place is Inline.MOVED:
            return self._moved.append
        if place is Inline.DROPPED:
            return _nowhere
        return self.add

    def reasoned(self, start: int) -> None:
        """Note that the pieces from `start` on are an assistant's reasoning."""
        for at in range(start, len(self.pieces)):
            self._reasoned.append((at, b""))

    def content(self) -> None:
        """Note that the last piece is an assistant's content, which may have reasoning in its
        parts."""
        piece = self.pieces[-1]
        if isinstance(piece, Reasoned):
            self._reasoned.append((len(self.pieces) - 1, piece.silent))

    def text(self, reasoning: Reasoning) -> bytes:
        """The canonical bytes, in the order of the model's template."""
        if self._reasoned or self._tools or self._moved:
            self._rearrange(reasoning)
        text = b"".join(self.pieces)
        if MEDIA in text:
            text, self.media = weighed(text)
        return text

    def _rearrange(self, reasoning: Reasoning) -> None:
        """Move or remove pieces as the template does."""
        pieces = self.pieces
        if self._reasoned and reasoning is not Reasoning.KEPT:
            cut = _cut(pieces, reasoning)
            for at, rest in self._reasoned:
                if at >= cut:
                    break
                pieces[at] = rest
        if self._tools and self._traits.tools is ToolsPlace.LAST_USER:
            # Behind what is put in at the front, which has not been moved yet.
            at = max(_last_turn(pieces), self._front)
            pieces.insert(at, self._tools)
        if self._moved:
            pieces[self._front : self._front] = self._moved

    def doubts(self, unknown: tuple[bytes, ...]) -> Doubts | None:
        """What the template may do in another way than is done here; None where that is known.

        unknown: template arguments that were not tried. To be asked behind `text`.
        """
        if unknown or self._inline or self._reasoned or self._tools:
            return self._doubts(unknown)
        return None

    def _doubts(self, unknown: tuple[bytes, ...]) -> Doubts | None:
        if unknown:
            return Doubts(unknown=unknown)
        if self._traits.known:
            return None
        front = self._size(0, self._front)
        tools = front if self._tools else 0
        if self._inline:
            return Doubts(front, tools)
        if self._reasoned:
            return Doubts(front + self._size(self._front, self._reasoned[0][0]), tools)
        return Doubts(-1, tools)

    def _size(self, start: int, end: int) -> int:
        """The number of canonical bytes in some pieces."""
        pieces = self.pieces[start:end]
        if self.media:
            return len(weighed(b"".join(pieces))[0])
        return sum([len(memoryview(piece)) for piece in pieces])


def _nowhere(_: object) -> None:
    return


def _cut(pieces: Sequence[Piece], reasoning: Reasoning) -> int:
    """Reasoning in the pieces before this one is not rendered."""
    if reasoning is Reasoning.TURN:
        return _last_turn(pieces)
    if reasoning is Reasoning.ANSWER:
        return _last_answer(pieces)
    return len(pieces)


def _last_turn(pieces: Sequence[Piece]) -> int:
    """Where the last message begins that has something the user said; 0 without one. Results of
    tools are none: the messages API has them in the user's messages."""
    for at in range(len(pieces) - 3, -1, -1):
        if (
            pieces[at] is MESSAGE
            and pieces[at + 1] == USER
            and not isinstance(pieces[at + 2], Results)
        ):
            return at
    return 0


def _last_answer(pieces: Sequence[Piece]) -> int:
    """Where the message after the last answer without tool calls begins; 0 without one."""
    end = len(pieces)
    called = False
    for at in range(end - 1, -1, -1):
        piece = pieces[at]
        if piece is MESSAGE:
            if pieces[at + 1] == ASSISTANT and not called:
                return end
            end, called = at, False
        elif isinstance(piece, bytes) and CALL in piece:
            called = True
    return 0
