"""Whether this side tokenises as an engine does: both are asked for the same prompts."""

from __future__ import annotations

import asyncio
from array import array
from typing import Any

import httpx
import msgspec

from router.render.errors import UnrenderedError
from router.render.model import RenderModel

_ODD = (
    "Grüße, 你好世界, здравствуйте, नमस्ते, مرحبا\n\n\ttabs  and   spaces \r\n"
    "emoji 👩‍👩‍👧‍👦 e\u0301 \u200b zero <b>&amp;</b> {\"a\": [1, 2.50]} 1234567890 'tis we'll"
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": 'Looks "things" up <ü>.',
        "parameters": {
            "type": "object",
            "properties": {
                "what": {"type": "string", "enum": ["a", "b"]},
                "n": {"type": "integer"},
            },
            "required": ["what"],
        },
        "strict": True,
    },
}
_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "look_up", "arguments": '{"what":"a","n":2,"ü":[1.0,null,true]}'},
}


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def prompts(special: list[str]) -> list[dict[str, Any]]:
    """Bodies that show the usual differences: tools, unicode, special tokens in a user's text,
    parts, system and developer messages, reasoning, no generation prompt."""
    system = {"role": "system", "content": "Be brief."}
    answer = {"role": "assistant", "content": "Sure. <think>not so</think> Done."}
    called = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": '{"found": "x"}\n'}
    chats: list[dict[str, Any]] = [
        {"messages": [_user("Hi")]},
        {"messages": [system, _user(_ODD)]},
        {"messages": [system, _user("a"), answer, _user("b"), answer, _user(" c ")]},
        {"messages": [_user([{"type": "text", "text": "one"}, {"type": "text", "text": _ODD}])]},
        {"messages": [system, _user("x")], "tools": [_TOOL]},
        {"messages": [_user("x"), called, result, _user("and?")], "tools": [_TOOL]},
        {"messages": [_user("x"), called, result, answer], "add_generation_prompt": False},
        {"messages": [{"role": "developer", "content": "Be kind."}, _user("x")]},
        {"messages": [system, _user("word " * 700 + "\n" + "Line of text;\n" * 700)]},
    ]
    if special:
        chats.append({"messages": [_user(f"a{special[0]} b {' '.join(special[:20])}\n")]})
    return chats


TEXTS = ("Once upon a time", _ODD, "  x\n\n")


async def compare(client: httpx.AsyncClient, url: str, name: str, model: RenderModel) -> str:
    """Why an engine's tokens differ from ours; empty when they do not.

    A prompt that the engine refuses is passed over, and so is one that the template refuses here:
    neither is ever predicted. Raises httpx.HTTPError when the engine cannot be asked.
    """
    compared = 0
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("chat", body) for body in prompts(model.tokenizer.special)
    ]
    bodies += [("completions", {"prompt": text}) for text in TEXTS]
    for api, body in bodies:
        answer = await client.post(f"{url}/tokenize", json={"model": name, **body})
        if answer.status_code in (404, 405):
            return f"/tokenize answers {answer.status_code}: it cannot be compared with"
        if answer.status_code != 200:
            continue
        try:
            theirs = msgspec.json.decode(answer.content)["tokens"]
        except (msgspec.DecodeError, KeyError, TypeError):
            return "/tokenize answers something else than tokens"
        try:
            text = model.read(api, msgspec.json.encode(body))
        except UnrenderedError as error:
            if error.word == "template":
                return f"the engine renders a prompt that the template here does not: {error}"
            continue
        ours = list(array("I", await asyncio.to_thread(model.encode, text)))
        if ours != theirs:
            return _difference(ours, theirs, api, body)
        compared += 1
    if not compared:
        return "the engine refused every prompt of the check"
    return ""


def _difference(ours: list[int], theirs: list[int], api: str, body: dict[str, Any]) -> str:
    same = 0
    while same < min(len(ours), len(theirs)) and ours[same] == theirs[same]:
        same += 1
    what = "a prompt with tools" if "tools" in body else "a chat" if api == "chat" else "a text"
    return (
        f"tokens of {what} differ from the engine's from token {same} on "
        f"({len(ours)} here, {len(theirs)} there): another tokenizer, chat template "
        "(exact_chat_template) or default template arguments"
    )
