"""What the worst bodies cost: odd JSON and forms, against ordinary bodies of their size.

    python -m bench.shapes

Every body has about a megabyte. Times are CPU milliseconds of the first reading, since nothing of a
hostile body has been seen before.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator

from router.http.form import model_of
from router.http.request import Request
from router.prompt import PARSERS, PromptError, without_transfer

SIZE = 1 << 20
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"

ELEMENTS = {
    "1": b"1",
    "null": b"null",
    "{}": b"{}",
    '""': b'""',
    "[1]": b"[1]",
    "parts of no text": b'{"type":"text"}',
    "images": b'{"image_url":1}',
    "image URLs": b'{"type":"image_url","image_url":{"url":"http://a.example/%07d"}}',
    "roles": b'{"role":"user"}',
    "big integers": b'{"role":"user","name":1844674407370955161618446744073709551%07d}',
    "names twice": b'{"role":1,"role":"user","content":"hello hello hello hello %07d"}',
}


def repeated(unit: bytes) -> bytes:
    """An array's content; a number in the unit makes each element another."""
    count = SIZE // (len(unit) + 1)
    if b"%" not in unit:
        return b",".join([unit] * count)
    return b",".join(unit % (number + 1_000_000) for number in range(count))


def chat(content: bytes) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":%b}]}' % content


def ordinary() -> Iterator[tuple[str, str, bytes]]:
    for name, text in (("long texts", "word " * 200), ("short texts", "a sentence of ten words")):
        message = json.dumps({"role": "user", "content": text}).encode()
        yield name, CHAT, b'{"model":"m","messages":[%b]}' % repeated(message)


def odd() -> Iterator[tuple[str, str, bytes]]:
    for name, unit in ELEMENTS.items():
        many = repeated(unit)
        yield f"messages: {name}", CHAT, b'{"model":"m","messages":[%b]}' % many
        yield f"parts: {name}", CHAT, chat(b"[" + many + b"]")
        yield f"tools: {name}", CHAT, b'{"model":"m","messages":[],"tools":[%b]}' % many
        calls = b'{"model":"m","messages":[{"role":"assistant","tool_calls":[%b]}]}'
        yield f"calls: {name}", CHAT, calls % many
        yield f"items: {name}", RESPONSES, b'{"model":"m","input":[%b]}' % many
        yield f"blocks: {name}", MESSAGES, chat(b"[" + many + b"]")
        yield f"prompts: {name}", COMPLETIONS, b'{"model":"m","prompt":[%b]}' % many
    wide = b"{%b}" % b",".join(b'"key%07d":1' % number for number in range(SIZE // 15))
    yield "a part of many fields", CHAT, chat(b"[" + wide + b"]")
    yield "an item of many fields", RESPONSES, b'{"model":"m","input":[%b]}' % wide
    yield "a body of many fields", CHAT, b'{"messages":[],' + wide[1:]
    yield "deep nesting", CHAT, chat(b"[" * (SIZE // 2) + b"]" * (SIZE // 2))
    yield "not a number", CHAT, b'{"messages":[],"x":[%b]}' % repeated(b"NaN")
    yield "half surrogate pairs", CHAT, chat(b'"' + rb"\ud83d" * (SIZE // 6) + b'"')
    yield "UTF-16", CHAT, chat(b'"' + b"x" * (SIZE // 2) + b'"').decode().encode("utf-16")
    yield "no JSON", CHAT, b"x" * SIZE


def forms() -> Iterator[tuple[str, bytes]]:
    head = b"--b\r\ncontent-disposition:form-data;name=model;"
    yield "a form's head", head + b"name=model;" * (SIZE // 22) + b"a\r\n" * (SIZE // 6)
    yield "a form's parts", b"--b\r\n\r\n" * (SIZE // 7)
    yield (
        "a form's file",
        b'--b\r\ncontent-disposition: form-data; name="f"\r\n\r\n' + b"\r\n--" * (SIZE // 4),
    )


def cost(read: Callable[[], object]) -> float:
    start = time.process_time()
    with contextlib.suppress(PromptError):  # a refusal is a way to be done with it
        read()
    return (time.process_time() - start) * 1e3


def main() -> None:
    print(f"{'ordinary':32}{'ms':>8}")
    usual = 0.0
    for name, path, body in ordinary():
        PARSERS[path](chat(b'"warm up"'))
        usual = cost(lambda path=path, body=body: PARSERS[path](body))  # type: ignore[misc]
        print(f"{name:32}{usual:8.1f}")
    print(f"\n{'worst':32}{'ms':>8}   times short texts")
    found = [
        (cost(lambda path=path, body=body: PARSERS[path](body)), name)  # type: ignore[misc]
        for name, path, body in odd()
    ]
    content_type = [b"content-type", b"multipart/form-data; boundary=b"]
    for name, body in forms():
        request = Request(body=body, headers=content_type)
        found.append((cost(lambda request=request: model_of(request, trust=True)), name))  # type: ignore[misc]
    forged = b'{"kv_transfer_params":[%b],"messages":[]}' % repeated(b"1")
    found.append((cost(lambda: without_transfer(forged)), "forged transfer fields"))
    for spent, name in sorted(found, reverse=True)[:20]:
        print(f"{name:32}{spent:8.1f}{spent / usual:10.1f}")


if __name__ == "__main__":
    main()
