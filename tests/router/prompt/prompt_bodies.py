"""Hypothesis strategies for the bodies of each API."""

from __future__ import annotations

from hypothesis import strategies as st

# Characters that can be spelled in several ways or look like framing, and a long tail of others.
text = st.one_of(
    st.text(st.sampled_from('ab"\\/\b\f\n\r\t\x00\x01\x02\x1f\x7fé\u2028😀{}[]:,u'), max_size=8),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
long_text = st.builds(lambda unit, times: unit * times, text, st.sampled_from((1, 1, 90, 1300)))
scalar = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    text,
)
tree = st.recursive(
    scalar,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)
objects = st.dictionaries(text, tree, max_size=3)

tool = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": text, "parameters": objects}),
    }
)
text_part = st.fixed_dictionaries({"type": st.just("text"), "text": long_text})
image_part = st.fixed_dictionaries(
    {"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": text})}
)
call = st.fixed_dictionaries(
    {
        "id": text,
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": text, "arguments": text}),
    }
)
content = st.one_of(st.none(), long_text, st.lists(st.one_of(text_part, image_part), max_size=3))
message = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(("user", "assistant", "developer")), "content": content},
        optional={"name": text, "reasoning": text},
    ),
    st.fixed_dictionaries({"role": st.just("system"), "content": content}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "tool_calls": st.lists(call, max_size=3)},
        optional={"content": content},
    ),
    st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": text, "content": content}),
)
chat = st.fixed_dictionaries(
    {"model": text, "messages": st.lists(message, max_size=4)},
    optional={
        "tools": st.lists(tool, max_size=2),
        "chat_template_kwargs": objects,
        "documents": st.lists(objects, max_size=2),
        "cache_salt": text,
        "temperature": st.floats(0, 2),
        "stream": st.booleans(),
    },
)
block = st.one_of(
    text_part,
    st.fixed_dictionaries({"type": st.just("thinking"), "thinking": text, "signature": text}),
    st.fixed_dictionaries(
        {"type": st.just("tool_use"), "id": text, "name": text, "input": objects}
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("tool_result"),
            "tool_use_id": text,
            "content": st.one_of(text, st.lists(text_part, max_size=2)),
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("image"),
            "source": st.fixed_dictionaries(
                {"type": st.just("base64"), "media_type": st.just("image/png"), "data": text}
            ),
        }
    ),
)
anthropic = st.fixed_dictionaries(
    {
        "model": text,
        "max_tokens": st.integers(1, 9),
        "messages": st.lists(
            st.fixed_dictionaries(
                {
                    "role": st.sampled_from(("user", "assistant")),
                    "content": st.one_of(long_text, st.lists(block, max_size=3)),
                }
            ),
            max_size=3,
        ),
    },
    optional={
        "system": st.one_of(long_text, st.lists(text_part, max_size=2)),
        "tools": st.lists(
            st.fixed_dictionaries({"name": text, "input_schema": objects}), max_size=2
        ),
    },
)
item = st.one_of(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(("user", "assistant", "system", "developer")),
            "content": st.one_of(
                long_text,
                st.lists(
                    st.fixed_dictionaries({"type": st.just("input_text"), "text": text}), max_size=2
                ),
            ),
        }
    ),
    st.fixed_dictionaries(
        {"type": st.just("function_call"), "call_id": text, "name": text, "arguments": text}
    ),
    st.fixed_dictionaries(
        {"type": st.just("function_call_output"), "call_id": text, "output": long_text}
    ),
    st.fixed_dictionaries({"type": text, "whatever": tree}),
)
responses = st.fixed_dictionaries(
    {"model": text, "input": st.one_of(long_text, st.lists(item, max_size=3))},
    optional={"instructions": text, "tools": st.lists(objects, max_size=2)},
)
completions = st.fixed_dictionaries(
    {
        "model": text,
        "prompt": st.one_of(
            long_text,
            st.lists(text, max_size=3),
            st.lists(st.integers(0, 200_000), max_size=300),
            st.lists(st.lists(st.integers(0, 200_000), max_size=100), max_size=3),
        ),
    }
)
