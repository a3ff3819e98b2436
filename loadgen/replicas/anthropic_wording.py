"""/v1/messages as vLLM 0.32 words it: Anthropic's events; input_tokens counts the uncached ones
only."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from loadgen.replicas.answers import Answer, Choice, frame
from loadgen.replicas.errors import ApiError
from loadgen.replicas.tokens import WORDS, answer_words

_encode = msgspec.json.encode
_MARK = "@" * len(WORDS[0])


def event(name: str, **fields: Any) -> bytes:
    """A server-sent event with a name, framed as an HTTP chunk."""
    return frame(b"event: %b\ndata: %b\n\n" % (name.encode(), _encode({"type": name, **fields})))


class MessagesFormat:
    """Answers in the form of Anthropic's messages API."""

    ANTHROPIC: ClassVar = True

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def _usage(self) -> dict[str, int]:
        answer = self.answer
        cached = answer.cached_tokens
        return {
            "input_tokens": answer.prompt_tokens - cached,
            "output_tokens": answer.completion_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
        }

    def _stop_reason(self) -> str:
        if self.answer.job.tool:
            return "tool_use"
        return "max_tokens" if self.answer.choices[0].limited else "end_turn"

    def opening(self) -> bytes:
        answer = self.answer
        uncached = answer.prompt_tokens - answer.cached_tokens
        message: dict[str, Any] = {
            "id": answer.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": answer.job.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": uncached, "output_tokens": 0},
        }
        block: dict[str, Any] = {"type": "text", "text": ""}
        tool = answer.job.tool
        if tool:
            block = {"type": "tool_use", "id": f"toolu_{answer.id}", "name": tool.name, "input": {}}
        return event("message_start", message=message) + event(
            "content_block_start", content_block=block, index=0
        )

    def tokens(self, choice: Choice, end: int, last: bool) -> bytes:
        tool = self.answer.job.tool
        if tool:
            if not last:
                return b""
            part = {"type": "input_json_delta", "partial_json": tool.arguments}
            return event("content_block_delta", delta=part, index=0)
        head, tail = self._around()
        words = answer_words(choice.seed, choice.sent, end)
        return head + (tail + head).join(words) + tail

    def around(self, _: Choice, /) -> tuple[bytes, bytes] | None:
        return None if self.answer.job.tool else self._around()

    def _around(self) -> tuple[bytes, bytes]:
        mark = {"type": "text_delta", "text": _MARK}
        head, tail = event("content_block_delta", delta=mark, index=0).split(_MARK.encode())
        return head, tail

    def closing(self) -> bytes:
        return (
            event("content_block_stop", index=0)
            + event(
                "message_delta",
                delta={"stop_reason": self._stop_reason(), "stop_sequence": None},
                usage=self._usage(),
            )
            + event("message_stop")
        )

    def failed(self, error: ApiError) -> bytes:
        return frame(b"event: error\ndata: %b\n\n" % error.body(anthropic=True))

    def whole(self) -> bytes:
        answer, tool = self.answer, self.answer.job.tool
        block: dict[str, Any]
        if tool:
            block = {
                "type": "tool_use",
                "id": f"toolu_{answer.id}",
                "name": tool.name,
                "input": msgspec.Raw(tool.arguments.encode()),
            }
        else:
            block = {"type": "text", "text": answer.choices[0].text}
        return _encode(
            {
                "id": answer.id,
                "type": "message",
                "role": "assistant",
                "content": [block],
                "model": answer.job.model,
                "stop_reason": self._stop_reason(),
                "stop_sequence": None,
                "usage": self._usage(),
            }
        )
