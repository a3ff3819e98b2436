"""What recorded prompts share: their texts in pieces, each named by what it says.

Two prompts share a prefix as far as their pieces are the same. A piece is PIECE_TOKENS long, so
that much is the error at the place where two texts part; an answer is one piece, which later
prompts repeat as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import xxhash

from loadgen.workloads.content import Content, Conversation, Message, Role, Tool
from loadgen.workloads.text import text as made_up
from loadgen.workloads.types import Prompt, Segment

PIECE_TOKENS = 64
_SAMPLE = 100_000
"""Bytes of made-up text that are counted."""


class _Said(NamedTuple):
    """One message."""

    role: Role
    text: str
    images: tuple[str, ...] = ()
    answer: int = 0


_CHAT_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
}


class Counter(Protocol):
    """Tells how long texts are."""

    def pieces(self, text: str) -> Iterator[tuple[int, int]]:
        """(name, tokens) of its pieces, none for an empty text."""
        ...


class ByBytes:
    """So many bytes a token."""

    def __init__(self, bytes_per_token: float = 4.0) -> None:
        self._size = max(1, round(PIECE_TOKENS * bytes_per_token))
        self._bytes_per_token = bytes_per_token

    def pieces(self, text: str) -> Iterator[tuple[int, int]]:
        """By their bytes."""
        data = text.encode("utf-8", "surrogatepass")
        for start in range(0, len(data), self._size):
            part = data[start : start + self._size]
            yield named(part), max(1, round(len(part) / self._bytes_per_token))


class ByTokenizer:
    """The model's own tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._encode = tokenizer.encode

    def pieces(self, text: str) -> Iterator[tuple[int, int]]:
        """By their tokens."""
        ids: list[int] = self._encode(text, add_special_tokens=False).ids
        for start in range(0, len(ids), PIECE_TOKENS):
            part = ids[start : start + PIECE_TOKENS]
            yield named(b"".join(each.to_bytes(4, "little") for each in part)), len(part)


class Measures(NamedTuple):
    """How prompts become segments."""

    counter: Counter
    image_tokens: int


@lru_cache(maxsize=4)
def load_tokenizer(name: str) -> Any:
    """A tokenizer.json, a folder with one, or a name on the Hugging Face hub. Raises ValueError."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ValueError("--tokenizer needs a library: pip install tokenizers") from None
    path = Path(name)
    if path.is_dir():
        path = path / "tokenizer.json"
    try:
        if path.is_file():
            return Tokenizer.from_file(str(path))
        return Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"--tokenizer {name}: {error}") from error


def bytes_per_token(tokenizer: Any) -> float:
    """Of the text that is made up for segments."""
    sample = made_up(1, _SAMPLE).decode()
    return len(sample) / len(tokenizer.encode(sample, add_special_tokens=False).ids)


def named(data: bytes) -> int:
    """63 bits."""
    return xxhash.xxh3_64_intdigest(data) >> 1


def prompt_of(content: Content, measures: Measures, answers: Mapping[int, Segment]) -> Prompt:
    """Segments of a recorded prompt; at least one token. answers: of the session's earlier steps
    whose texts are not recorded."""
    said = (
        _of_conversation(content) if isinstance(content, Conversation) else _of_body(content.body)
    )
    prompt: list[Segment] = []
    for role, text, images, answer in said:
        if answer in answers:
            prompt.append(answers[answer])
        elif role is Role.ASSISTANT:
            prompt.append(answer_of(text, measures))
        else:
            prompt += (Segment(*piece, role) for piece in measures.counter.pieces(text))
        prompt += (Segment(named(url.encode()), measures.image_tokens, role) for url in images)
    return tuple(prompt) or (Segment(0, 1),)


def answer_of(text: str, measures: Measures) -> Segment:
    """What was answered, as later prompts have it."""
    tokens = sum(count for _, count in measures.counter.pieces(text))
    return Segment(
        named(b"answer/" + text.encode("utf-8", "surrogatepass")), max(1, tokens), Role.ASSISTANT
    )


def said_by(message: Message) -> str:
    """A message's text with its calls, which the model wrote too."""
    calls = "".join(f"{call.name}{call.arguments}" for call in message.calls)
    return message.text + calls


def _of_conversation(content: Conversation) -> Iterator[_Said]:
    for tool in content.tools:
        yield _Said(Role.TOOLS, f"{tool.name}{tool.description}{tool.parameters.decode()}")
    for message in content.messages:
        yield _Said(message.role, said_by(message), message.images, message.answer)


def _of_body(body: bytes) -> Iterator[_Said]:
    """The fields of any API that carry a prompt, in the order chat templates put them."""
    members: dict[str, Any] = msgspec.json.decode(body)
    if tools := members.get("tools"):
        yield _Said(Role.TOOLS, msgspec.json.encode(tools).decode())
    for field in ("system", "instructions"):
        if value := members.get(field):
            yield _Said(Role.SYSTEM, *_texts(value))
    for field in ("messages", "input", "prompt"):
        value = members.get(field)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                role = _CHAT_ROLES.get(str(item.get("role")), Role.USER)
                rest = {k: v for k, v in item.items() if k not in ("role", "type", "id")}
                yield _Said(role, *_texts(rest))
        elif value:
            yield _Said(Role.USER, *_texts(value))


def _texts(value: Any) -> tuple[str, tuple[str, ...]]:
    """(texts, images) anywhere in a JSON value, in their order."""
    texts: list[str] = []
    images: list[str] = []
    _collect(value, texts, images)
    return "".join(texts), tuple(images)


def _collect(value: Any, texts: list[str], images: list[str]) -> None:
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        texts.append(f"{value} ")  # a prompt of token ids
    elif isinstance(value, Sequence):
        for each in value:
            _collect(each, texts, images)
    elif isinstance(value, dict):
        url = image_url(value)
        if url:
            images.append(url)
            return
        for name, each in value.items():
            if name not in ("type", "cache_control"):
                _collect(each, texts, images)


def image_url(part: dict[str, Any]) -> str:
    """Of a content part of any API that is an image; else empty."""
    kind = part.get("type")
    if kind in ("image_url", "input_image"):
        found = part.get("image_url")
        return str(found.get("url", "")) if isinstance(found, dict) else str(found or "")
    if kind == "image" and isinstance(source := part.get("source"), dict):
        if source.get("type") == "base64":
            return f"data:{source.get('media_type')};base64,{source.get('data')}"
        return str(source.get("url", ""))
    return ""


def tools_of(values: Any) -> tuple[Tool, ...]:
    """Tools as the chat API or the messages API has them."""
    found = []
    for value in values or ():
        function = value.get("function", value)
        schema = function.get("parameters") or function.get("input_schema") or {"type": "object"}
        found.append(
            Tool(
                str(function.get("name") or value.get("type") or "tool"),
                str(function.get("description") or ""),
                msgspec.json.encode(schema),
            )
        )
    return tuple(found)
