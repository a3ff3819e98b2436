"""The way of one chat request is the one that docs/architecture.md shows."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import CodeType, FrameType

from http_world import END, SSE_HEAD, Connect, MakeReplica, MakeRouter, chunk, event, post

ROOT = Path(__file__).parents[3]
PATH = "/v1/chat/completions"
MOST_FILES, MOST_HTTP_FILES, MOST_LINES = 16, 8, 1825
"""To the client's last byte. They may only shrink."""
MESSAGES = [
    {"role": "system", "content": "You are helpful. " * 100},
    {"role": "user", "content": "hello " * 300},
]
BODY = json.dumps({"model": "m", "stream": True, "messages": MESSAGES}).encode()
USAGE = {
    "prompt_tokens": 800,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 700},
}


def token(text: str, finish: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish}])


ANSWER = (
    *(SSE_HEAD, chunk(token("a")), chunk(token("b")), chunk(token("", "stop"))),
    *(chunk(event(choices=[], usage=USAGE)), chunk(b"data: [DONE]\n\n"), END),
)


class Way:
    """The functions of the project that what a socket brings has run, in order."""

    def __init__(self) -> None:
        self.codes: list[CodeType] = []
        self._router = f"{ROOT}/router/"

    def __call__(self, frame: FrameType, what: str, _: object) -> None:
        if what != "call" or not frame.f_code.co_filename.startswith(self._router):
            return
        first, above = frame, frame.f_back
        while above is not None:
            if above.f_code.co_filename.startswith(self._router):
                first = above
            above = above.f_back
        # What else the router does meanwhile (probes, sweeps) is not begun by a connection.
        if first.f_code.co_qualname.split(".")[0] in ("ClientConnection", "UpstreamConnection"):
            self.codes.append(frame.f_code)

    def to_last_byte(self) -> list[CodeType]:
        """Those until the client has got everything; the books are closed after it."""
        names = [code.co_qualname for code in self.codes]
        return self.codes[: names.index("Exchange.answered")]


def name(code: CodeType) -> str:
    return str(Path(code.co_filename).relative_to(ROOT))


def lines(codes: list[CodeType]) -> int:
    """Lines of source that these functions have."""
    found: set[tuple[str, int]] = set()
    for code in set(codes):
        numbers = [line for _, _, line in code.co_lines() if line]
        found.update((code.co_filename, line) for line in range(min(numbers), max(numbers) + 1))
    return len(found)


def page() -> str:
    """What the page says of the files."""
    text = (ROOT / "docs/architecture.md").read_text()
    return text.split("## The files, in order")[1].split("\n## ")[0]


async def test_the_page_lists_the_files_on_the_way(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply(*ANSWER)
    app = await router(replica, policy="cache_aware")
    client = await connect(app)
    way = Way()
    # The first one opens the connection to the replica and learns of the engine.
    for _ in range(3):
        way.codes.clear()
        sys.setprofile(way)
        try:
            status, _, body = await client.ask(post(PATH, BODY))
        finally:
            sys.setprofile(None)
        assert (status, b"[DONE]" in body, b"usage" in body) == (200, True, False)
    before = way.to_last_byte()
    files = dict.fromkeys(map(name, before))
    print(f"to the last byte: {len(files)} files, {lines(before)} lines")
    print(f"with the books: {len(set(map(name, way.codes)))} files, {lines(way.codes)} lines")
    print("\n".join(files))
    assert [file for file in files if f"`{file}`" not in page()] == []
    steps = re.findall(r"^\| \d+ \| `(\S+)`", page(), re.MULTILINE)
    assert [step for step in steps if step not in files] == []
    assert sum(file.startswith("router/http/") for file in files) <= MOST_HTTP_FILES
    assert len(files) <= MOST_FILES
    assert lines(before) <= MOST_LINES
