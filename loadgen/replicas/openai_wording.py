"""/v1/chat/completions and /v1/completions as vLLM 0.32 words them."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from loadgen.replicas.answers import Answer, Choice, frame
from loadgen.replicas.errors import ApiError
from loadgen.replicas.tokens import WORDS, answer_words

FINGERPRINT = "vllm-simulated"
_encode = msgspec.json.encode
_MARK = "@" * len(WORDS[0])
DONE = frame(b"data: [DONE]\n\n")


def sse(value: Any) -> bytes:
    """A server-sent event without a name, framed as an HTTP chunk."""
    return frame(b"data: %b\n\n" % _encode(value))


class _Streamed:
    """Token events all have one length, so all but the token is prepared when a choice starts."""

    ANTHROPIC: ClassVar = False
    OBJECT = ""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.frugal = not answer.job.continuous_usage and answer.job.tool is None

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The JSON object around what one event carries."""
        answer = self.answer
        return {
            "id": answer.id,
            "object": self.OBJECT,
            "created": answer.created,
            "model": answer.job.model,
            "choices": choices,
            **more,
        }

    def delta(self, choice: Choice, text: str, finish: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def tokens(self, choice: Choice, end: int, last: bool) -> bytes:
        if not self.frugal:
            return self._tokens_slowly(choice, end, last)
        if last:
            end -= 1
        out = b""
        if end > choice.sent:
            head, tail = self._around(choice)
            words = answer_words(choice.seed, choice.sent, end)
            out = head + (tail + head).join(words) + tail
        if last:
            out += self._final(choice)
        return out

    def around(self, choice: Choice, /) -> tuple[bytes, bytes] | None:
        return self._around(choice) if self.frugal else None

    def _around(self, choice: Choice) -> tuple[bytes, bytes]:
        sample = sse(self.chunk([self.delta(choice, _MARK, None)]))
        head, tail = sample.split(_MARK.encode())
        return head, tail

    def _final(self, choice: Choice) -> bytes:
        word = answer_words(
            choice.seed, choice.request.output_tokens - 1, choice.request.output_tokens
        )
        finish = "length" if choice.limited else "stop"
        more = {} if self.answer.job.include_usage else {"system_fingerprint": FINGERPRINT}
        return sse(self.chunk([self.delta(choice, word[0].decode(), finish)], **more))

    def _tokens_slowly(self, choice: Choice, end: int, last: bool) -> bytes:
        """Write token by token, because every event has to carry usage."""
        out = []
        total = choice.request.output_tokens
        for position, word in enumerate(
            answer_words(choice.seed, choice.sent, end), choice.sent + 1
        ):
            ends = last and position == total
            finish = ("length" if choice.limited else "stop") if ends else None
            out.append(
                sse(
                    self.chunk(
                        [self.delta(choice, word.decode(), finish)],
                        usage=self._usage_so_far(choice, position),
                    )
                )
            )
        return b"".join(out)

    def _usage_so_far(self, choice: Choice, completion: int) -> dict[str, int]:
        prompt = choice.request.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
        }

    def failed(self, error: ApiError) -> bytes:
        return frame(b"data: %b\n\n" % error.body()) + DONE

    def closing(self) -> bytes:
        if not self.answer.job.include_usage:
            return DONE
        usage = self.answer.usage()
        return sse(self.chunk([], usage=usage, system_fingerprint=FINGERPRINT)) + DONE


class ChatFormat(_Streamed):
    """Answers in the form of OpenAI's chat completions."""

    OBJECT = "chat.completion.chunk"

    def delta(self, choice: Choice, text: str, finish: str | None) -> dict[str, Any]:
        item: dict[str, Any] = {
            "index": choice.index,
            "delta": {"content": text},
            "logprobs": None,
            "finish_reason": finish,
        }
        if finish is not None:
            item["stop_reason"] = None
        item["token_ids"] = None
        return item

    def opening(self) -> bytes:
        out = []
        for choice in self.answer.choices:
            item = {
                "index": choice.index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            more: dict[str, Any] = {}
            if self.answer.job.continuous_usage:
                more["usage"] = self._usage_so_far(choice, 0)
            out.append(sse(self.chunk([item], **more, prompt_token_ids=None, prompt_text=None)))
        return b"".join(out)

    def tokens(self, choice: Choice, end: int, last: bool) -> bytes:
        tool = self.answer.job.tool
        if tool is None:
            return super().tokens(choice, end, last)
        out = b""
        function: dict[str, Any]
        if choice.sent == 0:
            function = {
                "id": f"chatcmpl-tool-{self.answer.id[-16:]}",
                "type": "function",
                "index": 0,
                "function": {"name": tool.name, "arguments": ""},
            }
            out += sse(self.chunk([self._tool_delta(choice, function)]))
        if last:
            function = {"index": 0, "function": {"arguments": tool.arguments}}
            out += sse(self.chunk([self._tool_delta(choice, function)]))
            item = {
                "index": choice.index,
                "delta": {},
                "logprobs": None,
                "finish_reason": "stop" if tool.named else "tool_calls",
                "stop_reason": None,
                "token_ids": None,
            }
            out += sse(self.chunk([item], system_fingerprint=FINGERPRINT))
        return out

    def _tool_delta(self, choice: Choice, call: dict[str, Any]) -> dict[str, Any]:
        return {
            "index": choice.index,
            "delta": {"content": None, "tool_calls": [call]},
            "logprobs": None,
            "finish_reason": None,
            "token_ids": None,
        }

    def whole(self) -> bytes:
        answer, tool = self.answer, self.answer.job.tool
        choices = []
        for choice in answer.choices:
            message: dict[str, Any] = {
                "role": "assistant",
                "content": "" if tool else choice.text,
                "refusal": None,
                "annotations": None,
                "audio": None,
                "function_call": None,
            }
            finish = "length" if choice.limited else "stop"
            if tool:
                finish = "stop" if tool.named else "tool_calls"
                message["tool_calls"] = [
                    {
                        "id": f"chatcmpl-tool-{answer.id[-16:]}",
                        "type": "function",
                        "function": {"name": tool.name, "arguments": tool.arguments},
                    }
                ]
            message["reasoning"] = None
            choices.append(
                {
                    "index": choice.index,
                    "message": message,
                    "logprobs": None,
                    "finish_reason": finish,
                    "stop_reason": None,
                    "token_ids": None,
                }
            )
        return _encode(
            {
                "id": answer.id,
                "object": "chat.completion",
                "created": answer.created,
                "model": answer.job.model,
                "choices": choices,
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": {**answer.usage(), "completion_tokens_details": None},
                "prompt_logprobs": None,
                "kv_transfer_params": None,
            }
        )


class CompletionsFormat(_Streamed):
    """Answers in the form of OpenAI's plain completions."""

    OBJECT = "text_completion"

    def delta(self, choice: Choice, text: str, finish: str | None) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": text,
            "logprobs": None,
            "finish_reason": finish,
            "stop_reason": None,
            "prompt_token_ids": None,
            "token_ids": None,
        }

    def opening(self) -> bytes:
        return b""

    def whole(self) -> bytes:
        answer = self.answer
        choices = [
            self.delta(choice, choice.text, "length" if choice.limited else "stop")
            for choice in answer.choices
        ]
        return _encode(
            {
                "id": answer.id,
                "object": self.OBJECT,
                "created": answer.created,
                "model": answer.job.model,
                "choices": choices,
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": {**answer.usage(), "completion_tokens_details": None},
                "kv_transfer_params": None,
            }
        )
