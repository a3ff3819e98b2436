"""Whatever comes, a diagnosis is made, and what it says of the common beginning is true."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from router.diagnosis import Diagnoser
from router.diagnosis.divergence import Change
from router.diagnosis.fingerprint import GRAIN
from router.prompt import PARSERS, PromptError
from router.telemetry.record import Finished

TEXTS = st.one_of(
    st.text(max_size=300),
    st.sampled_from(["", "a", "hello " * 50, "summary " * 9, "ok", "word " * 700]),
)
PARTS = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, TEXTS),
    st.builds(lambda text: {"type": "tool_result", "tool_use_id": "t", "content": text}, TEXTS),
    st.just({"type": "tool_use", "id": "t", "name": "n", "input": {"a": 1}}),
    st.just({"type": "image_url", "image_url": {"url": "data:,x"}}),
    st.just({"type": "thinking", "thinking": "hm"}),
    st.just({"odd": [1, 2]}),
)
CONTENTS = st.one_of(TEXTS, st.lists(PARTS, max_size=3), st.none())
MESSAGES = st.lists(
    st.builds(
        lambda role, content, more: {"role": role, "content": content, **more},
        st.sampled_from(["system", "user", "assistant", "tool", "developer"]),
        CONTENTS,
        st.sampled_from([{}, {"reasoning": "because"}, {"tool_call_id": "t"}, {"name": "bob"}]),
    ),
    max_size=6,
)
TOOLS = st.sampled_from(
    [None, [], [{"name": "a"}, {"name": "b"}], [{"name": "b"}, {"name": "a"}], "odd", [1]]
)
BODIES = st.builds(
    lambda messages, tools, model, more: {
        "model": model,
        "messages": messages,
        "input": messages,
        "prompt": "x" * len(messages) * 70,
        **({"tools": tools} if tools is not None else {}),
        **more,
    },
    MESSAGES,
    TOOLS,
    st.sampled_from(["m", "n"]),
    st.sampled_from([{}, {"cache_salt": "s"}, {"reasoning_effort": "low"}]),
)


class Engine:
    name = "a"
    slot = 0
    block_tokens = 16
    restarts = 0


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(PARSERS)), st.lists(BODIES, min_size=1, max_size=5), st.booleans())
def test_any_order_of_any_prompts(path: str, bodies: list[Any], named: bool) -> None:
    engine = Engine()
    diagnoser = Diagnoser(1 << 20, lambda: [engine], text_bytes=20)
    texts: dict[int, bytes] = {}
    for body in bodies:
        try:
            prompt = PARSERS[path](json.dumps(body).encode())
        except PromptError:
            continue
        if not prompt.text:
            continue
        api = "responses" if "responses" in path else "chat"
        found = diagnoser.asked(prompt, prompt.text, [], b"s" if named else b"", "", api)
        texts[found.new.serial] = prompt.text
        divergence, old = found.divergence, found.old
        if divergence is not None:
            assert old is not None
            mine, others = prompt.text, texts[old.serial]
            assert mine[: divergence.common] == others[: divergence.common]
            if divergence.change == Change.NONE:
                assert divergence.common == min(len(mine), len(others))
            elif divergence.index >= 0:
                following = divergence.common + GRAIN
                assert mine[:following] != others[:following]
        done = Finished("r", slot=0, replica="a", status=200, prompt_tokens=prompt.size // 4)
        diagnoser.ended(found, done, engine)
        assert done.miss_reason
        assert 0 <= done.missed_tokens <= max(done.prompt_tokens, 1)
