"""A small file of every format of traces that is known, made up, true to the real schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LONG = "You are a careful assistant of the harbour office. " * 40
"""About 500 tokens that several prompts begin with."""


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _event(number: int, second: int, source: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": number,
        "timestamp": f"2026-03-01T10:00:{second:02d}.000000",
        "source": source,
        **fields,
    }


def _called(number: int, name: str) -> dict[str, Any]:
    call = {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": "{}"}}
    message = {"role": "assistant", "content": f"step {number}", "tool_calls": [call]}
    return {
        "function_name": name,
        "tool_call_id": f"c{number}",
        "model_response": {
            "id": f"resp-{number}",
            "choices": [{"message": message}],
            "usage": {"prompt_tokens": 900, "completion_tokens": 21},
        },
        "total_calls_in_response": 1,
    }


OPENHANDS = [
    _event(0, 0, "agent", action="system", args={"content": LONG, "tools": []}),
    _event(1, 1, "user", action="message", args={"content": "Mend the crane."}),
    _event(
        2, 3, "agent", action="run", args={"command": "ls"}, tool_call_metadata=_called(1, "sh")
    ),
    _event(
        3, 8, "environment", observation="run", content="a.py", tool_call_metadata=_called(1, "sh")
    ),
    _event(
        4, 10, "agent", action="run", args={"command": "cat"}, tool_call_metadata=_called(2, "sh")
    ),
    _event(
        5, 11, "environment", observation="run", content="ok", tool_call_metadata=_called(2, "sh")
    ),
    _event(6, 14, "agent", action="message", args={"content": "Done."}),
]


def _sdk(kind: str, source: str, second: int, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "source": source, "timestamp": f"2026-03-01T10:00:{second:02d}", **fields}


OPENHANDS_SDK = [
    _sdk("SystemPromptEvent", "agent", 0, system_prompt={"type": "text", "text": LONG}, tools=[]),
    _sdk("MessageEvent", "user", 1, llm_message={"content": [{"type": "text", "text": "Go."}]}),
    _sdk(
        "ActionEvent",
        "agent",
        2,
        tool_name="terminal",
        tool_call_id="t1",
        llm_response_id="r1",
        thought=[{"type": "text", "text": "look"}],
        tool_call={"id": "t1", "name": "terminal", "arguments": '{"command": "ls"}'},
    ),
    _sdk(
        "ObservationEvent",
        "environment",
        6,
        tool_call_id="t1",
        observation={"content": [{"type": "text", "text": "b.py"}]},
    ),
    _sdk("MessageEvent", "agent", 7, llm_message={"content": [{"type": "text", "text": "Done."}]}),
]


def _claude(kind: str, second: int, message: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"u{second}",
        "parentUuid": None,
        "sessionId": "s-1",
        "isSidechain": False,
        "timestamp": f"2026-03-01T10:00:{second:02d}.000Z",
        "message": message,
        **fields,
    }


def _said(identity: str, *content: dict[str, Any], output: int) -> dict[str, Any]:
    usage = {
        "input_tokens": 4,
        "cache_creation_input_tokens": 2000,
        "cache_read_input_tokens": 10_300,
        "output_tokens": output,
    }
    return {"id": identity, "role": "assistant", "content": list(content), "usage": usage}


_USE = {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"file": "a"}}
CLAUDE_CODE = [
    {"type": "summary", "summary": "A crane", "leafUuid": "u9"},
    _claude("user", 0, {"role": "user", "content": "Mend the crane."}),
    _claude("assistant", 4, _said("m1", {"type": "text", "text": "I look."}, output=5)),
    _claude("assistant", 5, _said("m1", _USE, output=40)),
    _claude(
        "user",
        8,
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x = 1\n" * 80}
            ],
        },
    ),
    _claude("assistant", 11, _said("m2", {"type": "text", "text": "Done."}, output=7)),
    _claude("user", 6, {"role": "user", "content": "Find it."}, isSidechain=True, agentId="a1"),
    _claude(
        "assistant",
        7,
        _said("m3", {"type": "text", "text": "Found."}, output=3),
        isSidechain=True,
        agentId="a1",
    ),
]

MINI = {
    "trajectory_format": "mini-swe-agent-1.1",
    "info": {"exit_status": "Submitted", "model_stats": {"api_calls": 2}},
    "messages": [
        {"role": "system", "content": LONG},
        {"role": "user", "content": "Mend it."},
        {
            "role": "assistant",
            "content": "THOUGHT: look",
            "extra": {"timestamp": 100.0, "response": {"usage": {"completion_tokens": 33}}},
        },
        {"role": "user", "content": "<output>a</output>", "extra": {"timestamp": 104.5}},
        {"role": "assistant", "content": "THOUGHT: done", "extra": {"timestamp": 110.0}},
        {"role": "exit", "content": "Submitted"},
    ],
}
_ASKED = [{"role": "system", "content": LONG}, {"role": "user", "content": "Mend it."}]
SWE = {
    "environment": "main",
    "trajectory": [
        {"response": "I look", "action": "ls", "execution_time": 2.5, "query": _ASKED},
        {
            "response": "Done",
            "action": "submit",
            "execution_time": 0.1,
            "query": [
                *_ASKED,
                {"role": "assistant", "content": "I look"},
                {"role": "user", "content": "a.py"},
            ],
        },
    ],
    "history": [],
    "info": {},
}
AGENTIC = {
    "id": "trace_0001",
    "models": ["m"],
    "block_size": 64,
    "hash_id_scope": "local",
    "requests": [
        {"t": 0.0, "type": "s", "model": "m", "in": 130, "out": 20, "hash_ids": [1, 2, 3]},
        {
            "t": 1.0,
            "type": "subagent",
            "agent_id": "agent_001",
            "requests": [
                {"t": 1.0, "type": "n", "model": "m", "in": 64, "out": 5, "hash_ids": [9]}
            ],
        },
        {
            "t": 5.0,
            "type": "s",
            "model": "m",
            "in": 200,
            "out": 9,
            "hash_ids": [1, 2, 3, 4],
            "think_time": 1.5,
        },
    ],
}
_CHAT = {"messages": [{"role": "user", "content": LONG + "One?"}], "max_tokens": 12, "model": "x"}
VLLM_LOG = (
    "INFO 03-01 10:00:00 [api_server.py:100] Available routes are:\n"
    "DEBUG 03-01 10:00:05 [request_logger.py:70] Request a1b2 JSON body: "
    + json.dumps(_CHAT)
    + "\n"
    "DEBUG 03-01 10:00:05 [request_logger.py:55] Request chatcmpl-a1b2 details: prompt: "
    "'<|im_start|>user', prompt_token_ids: [1, 2], prompt_embeds shape: None.\n"
    "INFO 03-01 10:00:05 [request_logger.py:65] Received request chatcmpl-a1b2: params: "
    "SamplingParams(n=1, temperature=0.0, max_tokens=12), lora_request: None.\n"
    "INFO 03-01 10:00:07 [request_logger.py:65] Received request cmpl-c3d4-0: prompt: "
    "'It is\\n', params: SamplingParams(n=1, max_tokens=9), prompt_token_ids: [1], "
    "lora_request: None.\n"
    "INFO 03-01 10:00:08 [request_logger.py:90] Generated response chatcmpl-a1b2 (streaming complete): output: "
    "'Yes, one.', finish_reason: stop\n"
)


def _otlp_value(value: Any) -> dict[str, Any]:
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}


def _otlp(span: str, parent: str, start: float, end: float, **attributes: Any) -> dict[str, Any]:
    """An export of one span, as the collector's file exporter writes it."""
    one = {
        "traceId": "5b8efff798038103d269b633813fc60c",
        "spanId": span,
        "parentSpanId": parent,
        "name": "chat m",
        "kind": 3,
        "startTimeUnixNano": str(1_767_225_600_000_000_000 + round(start * 1e9)),
        "endTimeUnixNano": str(1_767_225_600_000_000_000 + round(end * 1e9)),
        "attributes": [
            {"key": f"gen_ai.{name.replace('__', '.')}", "value": _otlp_value(value)}
            for name, value in attributes.items()
        ],
        "status": {},
    }
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": [one]}]}]}


def _part(role: str, **part: Any) -> dict[str, Any]:
    return {"role": role, "parts": [part]}


_ASKED = [_part("user", type="text", content=LONG + "Which cranes?")]
_CALLED = _part("assistant", type="tool_call", id="c1", name="list", arguments={"all": True})
_RESULT = _part("tool", type="tool_call_response", id="c1", response="A, B")
OTLP = (
    # The engine's own span of the first call, which ends before the client's.
    _otlp("e1", "g1", 0.2, 1.9, usage__prompt_tokens=530, usage__completion_tokens=20),
    _otlp("g1", "a1", 0.1, 1.9),
    _otlp(
        "a1",
        "r",
        0.0,
        2.0,
        operation__name="chat",
        usage__input_tokens=530,
        usage__output_tokens=20,
        input__messages=json.dumps(_ASKED),
        output__messages=json.dumps([_CALLED]),
    ),
    _otlp("t1", "r", 2.0, 4.5, operation__name="execute_tool"),
    _otlp(
        "a2",
        "r",
        5.0,
        6.0,
        operation__name="chat",
        usage__input_tokens=570,
        usage__output_tokens=9,
        input__messages=json.dumps([*_ASKED, _CALLED, _RESULT]),
        output__messages=json.dumps([_part("assistant", type="text", content="Two.")]),
    ),
    _otlp("r", "", 0.0, 6.0, operation__name="invoke_agent"),
)

FILES: dict[str, tuple[str, str]] = {
    "sharegpt": (
        "a.json",
        json.dumps(
            [
                {
                    "id": "q1",
                    "conversations": [
                        {"from": "human", "value": LONG + "First?"},
                        {"from": "gpt", "value": "One answer. " * 9},
                        {"from": "human", "value": "And then?"},
                        {"from": "gpt", "value": "Another."},
                    ],
                },
                {"id": "q2", "conversations": [{"from": "human", "value": "Alone"}]},
            ]
        ),
    ),
    "custom": (
        "a.jsonl",
        lines(
            {"prompt": LONG + "Where?", "output_tokens": 10},
            {"prompt": LONG + "When?", "output_tokens": 20},
        ),
    ),
    "lengths": (
        "a.jsonl",
        lines(
            {"timestamp": 0.0, "input_length": 40, "output_length": 5, "hash_ids": [1, 2, 3]},
            {"timestamp": 1.5, "input_length": 48, "output_length": 6, "hash_ids": [1, 2, 7]},
        ),
    ),
    "burstgpt": (
        "a.csv",
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5.0,s1,3,GPT-4,100,20,120,Conversation log\n"
        "9.0,s1,2,GPT-4,200,30,230,Conversation log\n"
        "9.5,s2,2,ChatGPT,50,0,50,API log\n",
    ),
    "azure": (
        "a.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2026-03-01 10:00:00.6805900,374,44\n"
        "2026-03-01 10:00:04.7805900+00:00,396,109\n",
    ),
    "aiperf-sessions": (
        "a.jsonl",
        lines(
            {
                "session_id": "s1",
                "turns": [
                    {"text": LONG + "Hello", "output_length": 7},
                    {"text": "More", "delay": 2000, "image": "https://example.test/a.png"},
                ],
            }
        ),
    ),
    "aiperf-turns": (
        "a.jsonl",
        lines({"text": "Hello", "timestamp": 0}, {"text": "Hi", "timestamp": 500}),
    ),
    "aiperf-trace": (
        "a.jsonl",
        lines(
            {
                "session_id": "s1",
                "message_mode": "delta",
                "messages": [{"role": "user", "content": LONG}],
                "output_length": 6,
            },
            {
                "session_id": "s1",
                "message_mode": "delta",
                "messages": [{"role": "user", "content": "more"}],
                "output_length": 6,
                "delay": 300,
            },
            {"text_input": "Hello", "output_length": 4},
        ),
    ),
    "batch": (
        "a.jsonl",
        lines(
            {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": _CHAT},
            {
                "custom_id": "2",
                "method": "POST",
                "url": "/v1/embeddings",
                "body": {"input": "Harbour", "model": "e"},
            },
        ),
    ),
    "litellm": (
        "a.jsonl",
        lines(
            {
                "request_id": "1",
                "call_type": "acompletion",
                "startTime": "2026-03-01T10:00:00.5Z",
                "endTime": "2026-03-01T10:00:02Z",
                "prompt_tokens": 520,
                "completion_tokens": 12,
                "messages": json.dumps(_CHAT["messages"]),
                "status": "success",
            },
            {
                "request_id": "2",
                "startTime": "2026-03-01T10:00:02.5Z",
                "prompt_tokens": 80,
                "completion_tokens": 3,
                "messages": {},
                "session_id": "x",
                "status": "success",
            },
            {
                "request_id": "3",
                "startTime": "2026-03-01T10:00:03Z",
                "prompt_tokens": 0,
                "completion_tokens": 0,
                "status": "failure",
            },
        ),
    ),
    "vllm-log": ("server.log", VLLM_LOG),
    "chat": (
        "a.jsonl",
        lines(
            {
                "messages": [
                    {"role": "system", "content": LONG},
                    {"role": "user", "content": "Yes?"},
                    {"role": "assistant", "content": "No."},
                    {"role": "user", "content": "Why?"},
                ]
            }
        ),
    ),
    "swe-agent": ("a.traj", json.dumps(SWE, indent=2)),
    "mini-swe-agent": ("a.traj.json", json.dumps(MINI, indent=2)),
    "openhands": ("trajectory.json", json.dumps(OPENHANDS)),
    "openhands-sdk": ("events.jsonl", lines(*OPENHANDS_SDK)),
    "otel": ("spans.jsonl", lines(*OTLP)),
    "claude-code": ("s-1.jsonl", lines(*CLAUDE_CODE)),
    "agentic": ("trace.json", json.dumps(AGENTIC)),
}
"""By the format's name: (a file's name, its text)."""


def write(folder: Path, name: str) -> str:
    """One of FILES. Returns its path."""
    file, text = FILES[name]
    path = folder / file
    path.write_text(text)
    return str(path)
