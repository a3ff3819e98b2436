"""Steps as request bodies."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from loadgen.client.formats import BY_PATH, FORMATS, ApiFormat, Asked, Call, Piece, ToolPiece
from loadgen.workloads.content import Conversation, Role, Verbatim
from loadgen.workloads.text import name, text
from loadgen.workloads.types import Prompt, Step

CHAT = "chat"
_PARAMETERS = b'{"type":"object","properties":{"input":{"type":"string"}}}'
_encode = msgspec.json.encode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class BodyMaker:
    """Renders steps for one API and one model.

    The text of an answer already received stands in for the declared one if the caller has it."""

    def __init__(
        self,
        model: str,
        api: str = CHAT,
        *,
        bytes_per_token: float = 4.0,
        stream: bool = True,
        vllm_fields: bool = True,
    ) -> None:
        if api not in FORMATS:
            raise ValueError(f"unknown API {api!r}: use {', '.join(FORMATS)}")
        self.api = FORMATS[api]
        self._bytes_per_token = bytes_per_token
        self._model = _encode(model)
        self._stream = stream
        self._vllm_fields = vllm_fields
        self._head = b'{"model":' + self._model + b","
        # Without vLLM's fields a model may stop early, and the arms would not do the same work.
        self._tail = self.api.temperature + (self.api.vllm_fields if vllm_fields else b"")
        self._tail += (self.api.streaming if stream else b"") + b"}"

    def api_of(self, step: Step) -> ApiFormat:
        """Where this step goes: a recorded body to the API it was recorded at."""
        content = step.content
        return BY_PATH[content.path] if isinstance(content, Verbatim) else self.api

    def body(self, step: Step, answers: Mapping[int, bytes]) -> bytes:
        """The JSON of one request. answers: segment id -> JSON string content (escaped, no
        quotes)."""
        content = step.content
        if isinstance(content, Verbatim):
            return self._recorded(content, step.output.tokens)
        if content is None:
            asked = self._made_up(step.prompt, answers)
        else:
            asked = _conversation(content, answers)
        limit = self.api.limit and self.api.limit % step.output.tokens
        head = self._head
        if step.adapter:
            head = b'{"model":' + _encode(step.adapter) + b","
        return head + self.api.prompt(asked) + limit + self._tail

    def _recorded(self, content: Verbatim, output_tokens: int) -> bytes:
        """A body with this run's model and streaming, otherwise as it is."""
        api = BY_PATH[content.path]
        members = _members(content.body)
        members["model"] = msgspec.Raw(self._model)
        for field in ("stream", "stream_options"):
            members.pop(field, None)
        added = api.streaming if self._stream else b""
        if self._vllm_fields and api.vllm_fields and "ignore_eos" not in members:
            added += api.vllm_fields
        if api.limit and not {"max_tokens", "max_completion_tokens", "max_output_tokens"} & set(
            members
        ):
            added += api.limit % output_tokens
        return _encode(members)[:-1] + added + b"}"

    def sizes(self, step: Step, answers: Mapping[int, bytes]) -> list[float]:
        """Tokens that each segment of the prompt takes, by its bytes, with what surrounds it."""
        prompt = step.prompt
        if step.content is not None:
            return [part.tokens for part in prompt]
        found = []
        for place, part in enumerate(prompt):
            answer = answers.get(part.id)
            size = part.tokens * self._bytes_per_token if answer is None else len(answer)
            if self.api is FORMATS[CHAT]:
                size += _AROUND[part.role]
                if part.role is Role.ASSISTANT and place + 1 < len(prompt):
                    size += _CALL_BYTES if prompt[place + 1].role is Role.TOOL else 0
            found.append(size / self._bytes_per_token)
        return found

    def _text(self, number: int, tokens: int, answers: Mapping[int, bytes]) -> bytes:
        answer = answers.get(number)
        if answer is not None:
            return answer
        return text(number, int(tokens * self._bytes_per_token))

    def _made_up(self, prompt: Prompt, answers: Mapping[int, bytes]) -> Asked:
        """Messages and tools. Neighbours of one role are one message: chat templates want turns."""
        tools: list[ToolPiece] = []
        pieces: list[Piece] = []
        contents: list[bytes] = []
        count = len(prompt)
        for place, part in enumerate(prompt):
            content = self._text(part.id, part.tokens, answers)
            if part.role is Role.TOOLS:
                tools.append(ToolPiece(b"tool_" + name(part.id), content, _PARAMETERS))
                continue
            if part.role is Role.TOOL:
                call = b"call_" + name(prompt[place - 1].id)
                pieces.append(Piece(part.role, content, (), (), call))
                continue
            contents.append(content)
            follower = prompt[place + 1].role if place + 1 < count else None
            if follower is part.role:
                continue
            joined = b"\\n\\n".join(contents) if len(contents) > 1 else content
            contents.clear()
            calls = (_made_up_call(part.id),) if follower is Role.TOOL else ()
            pieces.append(Piece(part.role, joined, (), calls))
        return Asked(pieces, tools)


def _made_up_call(number: int) -> Call:
    made = name(number)
    return Call(b"call_" + made, b"tool_" + made, b"{}")


def _escaped(text: str) -> bytes:
    """A JSON string without its quotes."""
    return _encode(text)[1:-1]


def _conversation(content: Conversation, answers: Mapping[int, bytes]) -> Asked:
    pieces = []
    for message in content.messages:
        said = answers.get(message.answer) if message.answer else None
        pieces.append(
            Piece(
                message.role,
                _escaped(message.text) if said is None else said,
                tuple(map(_escaped, message.images)),
                tuple(
                    Call(_escaped(call.id), _escaped(call.name), _escaped(call.arguments))
                    for call in message.calls
                ),
                _escaped(message.call_id),
            )
        )
    return Asked(
        pieces,
        [
            ToolPiece(_escaped(tool.name), _escaped(tool.description), tool.parameters)
            for tool in content.tools
        ],
    )


_MESSAGE_BYTES = 16
"""What chat templates put around a message: about four tokens."""


def _frame(*pieces: Piece, tools: tuple[ToolPiece, ...] = ()) -> int:
    """Bytes of a prompt in which nothing is said."""
    return len(FORMATS[CHAT].prompt(Asked(list(pieces), list(tools))))


_EMPTY = Piece(Role.ASSISTANT, b"")
_CALL_BYTES = _frame(_EMPTY._replace(calls=(_made_up_call(0),))) - _frame(_EMPTY)
_AROUND = {
    Role.TOOLS: _frame(tools=(ToolPiece(b"tool_" + name(0), b"", _PARAMETERS),))
    - _frame()
    - len(b',"tools":[]'),
    Role.SYSTEM: _MESSAGE_BYTES,
    Role.USER: _MESSAGE_BYTES,
    Role.ASSISTANT: _MESSAGE_BYTES,
    Role.TOOL: _MESSAGE_BYTES + len("call_") + len(name(0)),
}
