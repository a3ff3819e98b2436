"""Answers of /v1/responses, as vLLM 0.32 words them."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from loadgen.replicas.answers import Answer, Choice, frame
from loadgen.replicas.errors import ApiError
from loadgen.replicas.tokens import answer_words

_encode = msgspec.json.encode


class ResponsesFormat:
    """OpenAI responses. Events are numbered, so none can be prepared but for its head."""

    ANTHROPIC: ClassVar = False

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.item_id = "msg_" + answer.id[5:]
        self.sequence = 0

    def _event(self, kind: str, /, **fields: Any) -> bytes:
        body = _encode({**fields, "sequence_number": self.sequence, "type": kind})
        self.sequence += 1
        return frame(b"event: %b\ndata: %b\n\n" % (kind.encode(), body))

    def _item(self, status: str) -> dict[str, Any]:
        tool = self.answer.job.tool
        done = status == "completed"
        if tool:
            return {
                "arguments": tool.arguments if done else "",
                "call_id": "call_" + self.answer.id[5:],
                "name": tool.name,
                "type": "function_call",
                "id": self.item_id,
                "status": status,
            }
        text = [self._part(self.answer.choices[0].text, None)] if done else []
        return {
            "id": self.item_id,
            "content": text,
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def _part(self, text: str, logprobs: list[Any] | None) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}

    def _response(self, done: bool) -> dict[str, Any]:
        answer = self.answer
        body = answer.job.body
        cut = done and answer.choices[0].limited and not answer.job.tool
        usage = None
        if done:
            usage = {
                "input_tokens": answer.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": answer.cached_tokens,
                    "cache_write_tokens": 0,
                },
                "output_tokens": answer.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0},
                "total_tokens": answer.prompt_tokens + answer.completion_tokens,
            }
        status = "in_progress"
        if done:
            status = "incomplete" if cut else "completed"
        return {
            "id": answer.id,
            "created_at": answer.created,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": body.get("instructions"),
            "metadata": body.get("metadata"),
            "model": answer.job.model,
            "object": "response",
            "output": [self._item("completed")] if done else [],
            "parallel_tool_calls": True,
            "temperature": body.get("temperature", 1.0),
            "tool_choice": body.get("tool_choice", "auto"),
            "tools": body.get("tools") or [],
            "top_p": body.get("top_p", 1.0),
            "background": False,
            "max_output_tokens": answer.job.max_tokens,
            "previous_response_id": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": status,
            "text": None,
            "truncation": "disabled",
            "usage": usage,
            "user": None,
        }

    def opening(self) -> bytes:
        response = self._response(False)
        out = self._event("response.created", response=response)
        out += self._event("response.in_progress", response=response)
        out += self._event(
            "response.output_item.added", item=self._item("in_progress"), output_index=0
        )
        if self.answer.job.tool is None:
            out += self._event(
                "response.content_part.added",
                content_index=0,
                item_id=self.item_id,
                output_index=0,
                part=self._part("", []),
            )
        return out

    def tokens(self, choice: Choice, end: int, last: bool) -> bytes:
        tool = self.answer.job.tool
        if tool:
            if not last:
                return b""
            return self._event(
                "response.function_call_arguments.delta",
                delta=tool.arguments,
                item_id=self.item_id,
                output_index=0,
            )
        head = (
            b'event: response.output_text.delta\ndata: {"content_index":0,"item_id":"%b",'
            b'"logprobs":[],"output_index":0,"type":"response.output_text.delta","delta":"'
            % self.item_id.encode()
        )
        out = []
        for word in answer_words(choice.seed, choice.sent, end):
            tail = b'%b","sequence_number":%d}\n\n' % (word, self.sequence)
            out.append(frame(head + tail))
            self.sequence += 1
        return b"".join(out)

    def around(self, _: Choice, /) -> None:
        return None

    def closing(self) -> bytes:
        tool = self.answer.job.tool
        if tool:
            out = self._event(
                "response.function_call_arguments.done",
                arguments=tool.arguments,
                item_id=self.item_id,
                name=tool.name,
                output_index=0,
            )
        else:
            text = self.answer.choices[0].text
            where = {"content_index": 0, "item_id": self.item_id, "output_index": 0}
            out = self._event("response.output_text.done", **where, logprobs=[], text=text)
            out += self._event("response.content_part.done", **where, part=self._part(text, None))
        out += self._event(
            "response.output_item.done", item=self._item("completed"), output_index=0
        )
        return out + self._event("response.completed", response=self._response(True))

    def failed(self, error: ApiError) -> bytes:
        return self._event("error", code=str(error.status), message=error.message, param=None)

    def whole(self) -> bytes:
        return _encode(self._response(True))
