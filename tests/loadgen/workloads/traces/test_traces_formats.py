"""Every format of traces: found by looking, and read for what it says."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trace_files
from trace_files import FILES, LONG

from loadgen.workloads import Mooncake, Replay, Session, TraceError, make
from loadgen.workloads.content import Conversation, Role, Verbatim
from loadgen.workloads.traces import Trace
from loadgen.workloads.traces.formats import FORMATS
from loadgen.workloads.traces.recorded import seconds_of
from loadgen.workloads.types import Step, tokens

_TEXT = len(LONG) // 4


def read(folder: Path, name: str, **settings: str) -> list[Session]:
    return list(make(trace_files.write(folder, name), settings).sessions(0))


def common(one: Step, other: Step) -> int:
    """Tokens of the prefix that two prompts share."""
    size = 0
    for mine, theirs in zip(one.prompt, other.prompt, strict=False):
        if mine != theirs:
            break
        size += mine.tokens
    return size


def said(step: Step) -> list[tuple[Role, str]]:
    assert isinstance(step.content, Conversation)
    return [(each.role, each.text) for each in step.content.messages]


def test_there_is_a_file_of_every_format() -> None:
    assert {each.name for each in FORMATS} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_format_is_found_by_looking(tmp_path: Path, name: str) -> None:
    workload = make(trace_files.write(tmp_path, name))
    assert isinstance(workload, Trace)
    assert workload.name == name
    sessions = list(workload.sessions(0))
    assert sessions == list(workload.sessions(0))
    for session in sessions:
        for step in session.steps:
            assert tokens(step.prompt) > 0
            assert step.output.tokens > 0


def test_sharegpt(tmp_path: Path) -> None:
    (one,) = read(tmp_path, "sharegpt")
    first, second = one.steps
    assert said(first) == [(Role.USER, LONG + "First?")]
    assert said(second)[1:] == [(Role.ASSISTANT, "One answer. " * 9), (Role.USER, "And then?")]
    # The next prompt continues the last one with the very answer.
    assert second.prompt[: len(first.prompt) + 1] == (*first.prompt, first.output)
    assert first.output.tokens == pytest.approx(len("One answer. " * 9) / 4, abs=1)
    assert not make(str(tmp_path / "a.json")).timed


def test_custom_prompts_share_what_they_begin_with(tmp_path: Path) -> None:
    one, other = (session.steps[0] for session in read(tmp_path, "custom"))
    assert (one.output.tokens, other.output.tokens) == (10, 20)
    assert _TEXT - 64 <= common(one, other) <= _TEXT


def test_lengths_find_their_units(tmp_path: Path) -> None:
    one, other = read(tmp_path, "lengths")
    assert (one.at, other.at) == (0.0, 1.5)
    assert common(one.steps[0], other.steps[0]) == 32
    assert tokens(other.steps[0].prompt) == 48
    bare = [{"timestamp": 1000 * k, "input_length": 9, "output_length": 2} for k in range(3)]
    path = tmp_path / "bare.jsonl"
    path.write_text(trace_files.lines(*bare))
    assert [session.at for session in make(str(path)).sessions(0)] == [0.0, 1.0, 2.0]
    in_seconds = make(str(path), {"unit": "s"}).sessions(0)
    assert [session.at for session in in_seconds] == [0.0, 1000.0, 2000.0]


def test_sessions_of_lengths_wait_for_their_delays(tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    path.write_text(
        trace_files.lines(
            {"session_id": "a", "input_length": 100, "output_length": 10},
            {"session_id": "b", "input_length": 50, "output_length": 10},
            {"session_id": "a", "input_length": 150, "output_length": 10, "delay": 1500},
        )
    )
    one, other = make(str(path)).sessions(0)
    assert [step.pause for step in one.steps] == [0.0, 1.5]
    assert common(one.steps[0], one.steps[1]) == 100
    assert one.steps[1].prompt[1] == one.steps[0].output
    assert len(other.steps) == 1


def test_a_published_mooncake_trace_and_an_access_log_keep_their_readers(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    line = {"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [1, 2]}
    path.write_text(trace_files.lines(line, {**line, "timestamp": 3000}))
    assert isinstance(make(str(path)), Mooncake)
    log = {"time": 1.0, "api": "chat", "outcome": "ok", "prompt_bytes": 900}
    path.write_text(trace_files.lines({**log, "blocks": [1]}))
    assert isinstance(make(str(path)), Replay)
    path.write_text(trace_files.lines(log))
    with pytest.raises(TraceError, match="--access-log-blocks true"):
        make(str(path))


def test_burstgpt_leaves_out_failures_and_continues_sessions(tmp_path: Path) -> None:
    one, other = read(tmp_path, "burstgpt")
    assert (one.at, other.at) == (0.0, 4.0)
    assert common(one.steps[0], other.steps[0]) == 100
    assert tokens(other.steps[0].prompt) == 200


def test_azure_dates_of_both_years(tmp_path: Path) -> None:
    one, other = read(tmp_path, "azure")
    assert other.at - one.at == pytest.approx(4.1)
    assert (tokens(other.steps[0].prompt), other.steps[0].output.tokens) == (396, 109)
    assert common(one.steps[0], other.steps[0]) == 0


def test_assumed_reuse_is_a_setting_and_is_said(tmp_path: Path) -> None:
    path = trace_files.write(tmp_path, "azure")
    assumed = make(path, {"shared": "0.5", "prefixes": "1"})
    assert isinstance(assumed, Trace)
    one, other = (session.steps[0] for session in assumed.sessions(0))
    assert common(one, other) == 0  # of 187 and 198 tokens: the shorter begins the longer
    assert one.prompt[0].id == other.prompt[0].id
    assert (one.prompt[0].tokens, other.prompt[0].tokens) == (187, 198)
    assert "50% of each prompt" in assumed.assumptions[0]
    plain = make(path)
    assert isinstance(plain, Trace)
    assert "share nothing" in plain.assumptions[0]
    custom = make(trace_files.write(tmp_path, "custom"))
    assert isinstance(custom, Trace)
    assert custom.assumptions == []


def test_aiperf_sessions_take_what_is_really_answered(tmp_path: Path) -> None:
    (one,) = read(tmp_path, "aiperf-sessions")
    first, second = one.steps
    assert second.pause == 2.0
    assert isinstance(second.content, Conversation)
    assert [each.answer for each in second.content.messages] == [0, first.output.id, 0]
    assert second.prompt[len(first.prompt)] == first.output
    assert second.content.messages[2].images == ("https://example.test/a.png",)
    assert second.prompt[-1].tokens == 576


def test_aiperf_deltas_grow(tmp_path: Path) -> None:
    alone, one = read(tmp_path, "aiperf-trace")
    assert said(alone.steps[0]) == [(Role.USER, "Hello")]
    first, second = one.steps
    assert second.pause == 0.3
    assert [role for role, _ in said(second)] == [Role.USER, Role.ASSISTANT, Role.USER]
    assert second.prompt[: len(first.prompt) + 1] == (*first.prompt, first.output)


def test_batch_bodies_go_to_their_own_api(tmp_path: Path) -> None:
    one, other = (session.steps[0].content for session in read(tmp_path, "batch"))
    assert isinstance(one, Verbatim)
    assert isinstance(other, Verbatim)
    assert (one.path, other.path) == ("/v1/chat/completions", "/v1/embeddings")
    assert json.loads(one.body)["max_tokens"] == 12
    path = tmp_path / "bad.jsonl"
    bad = {"custom_id": "1", "url": "/v1/images", "body": {}}
    path.write_text(trace_files.lines(bad))
    with pytest.raises(TraceError, match="line 1: url '/v1/images'"):
        list(make(str(path)).sessions(0))


def test_litellm_with_prompts_and_without(tmp_path: Path) -> None:
    one, other = read(tmp_path, "litellm")
    assert other.at - one.at == 2.0
    assert said(one.steps[0]) == [(Role.USER, LONG + "One?")]
    assert one.steps[0].output.tokens == 12
    assert other.steps[0].content is None
    assert tokens(other.steps[0].prompt) == 80


def test_vllm_log(tmp_path: Path) -> None:
    one, other = read(tmp_path, "vllm-log")
    assert other.at - one.at == 2.0
    assert isinstance(one.steps[0].content, Verbatim)
    assert isinstance(other.steps[0].content, Verbatim)
    assert json.loads(one.steps[0].content.body)["messages"][0]["content"] == LONG + "One?"
    assert json.loads(other.steps[0].content.body) == {"prompt": "It is\n"}
    assert one.steps[0].output.tokens == len("Yes, one.") // 4
    assert other.steps[0].output.tokens == 9


@pytest.mark.parametrize(
    ("name", "pauses", "outputs"),
    [
        ("swe-agent", [0.0, 2.5], [2, 1]),
        ("mini-swe-agent", [0.0, 4.5], [33, 3]),
        ("openhands", [0.0, 5.0, 1.0], [21, 21, 1]),
        ("openhands-sdk", [0.0, 4.0], [None, None]),
    ],
)
def test_trajectories_are_sessions_with_their_tool_pauses(
    tmp_path: Path, name: str, pauses: list[float], outputs: list[int | None]
) -> None:
    (one,) = read(tmp_path, name)
    assert [step.pause for step in one.steps] == pauses
    assert [step.after for step in one.steps] == [(), *((k,) for k in range(len(pauses) - 1))]
    for step, told in zip(one.steps, outputs, strict=True):
        assert told is None or step.output.tokens == told
    for before, after in zip(one.steps, one.steps[1:], strict=False):
        assert common(before, after) == tokens(before.prompt)
        assert after.prompt[len(before.prompt)].id == before.output.id
        assert after.prompt[len(before.prompt)].role is Role.ASSISTANT


def test_tool_results_follow_their_calls(tmp_path: Path) -> None:
    (one,) = read(tmp_path, "openhands")
    content = one.steps[1].content
    assert isinstance(content, Conversation)
    assert [each.role for each in content.messages] == [
        Role.SYSTEM,
        Role.USER,
        Role.ASSISTANT,
        Role.TOOL,
    ]
    assert content.messages[3].call_id == content.messages[2].calls[0].id == "c1"


def test_claude_code_sessions(tmp_path: Path) -> None:
    main, side = read(tmp_path, "claude-code")
    first, second = main.steps
    # 12,304 tokens were told: what is not in the file is made up at its length.
    assert tokens(first.prompt) == pytest.approx(12_304, abs=512)
    assert said(first)[1:] == [(Role.USER, "Mend the crane.")]
    # Both blocks of the first answer are one message, and one request.
    assert first.output.tokens == 40
    assert isinstance(second.content, Conversation)
    assert second.content.messages[2].calls[0].name == "Read"
    assert second.pause == 3.0
    assert [role for role, _ in said(side.steps[0])] == [Role.SYSTEM, Role.USER]
    assert common(first, side.steps[0]) > 12_000


def test_agentic_traces_wait_for_their_sub_agents(tmp_path: Path) -> None:
    (one,) = read(tmp_path, "agentic")
    assert [step.after for step in one.steps] == [(), (0,), (0, 1)]
    assert [step.thread for step in one.steps] == [0, 1, 0]
    assert one.steps[2].pause == 1.5
    assert common(one.steps[0], one.steps[2]) == 128


def test_columns_name_any_table(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(
        'when,question,n\n2026-03-01T10:00:00,"Who, me?",5\n2026-03-01T10:00:03,You,6\n'
    )
    columns = {"time": "when", "prompt": "question", "output_tokens": "n"}
    one, other = make(str(path), {}, columns).sessions(0)
    assert (one.at, other.at) == (0.0, 3.0)
    assert said(one.steps[0]) == [(Role.USER, "Who, me?")]
    assert other.steps[0].output.tokens == 6
    with pytest.raises(ValueError, match="--columns prompts: use time, prompt"):
        make(str(path), {}, {"prompts": "question"})
    with pytest.raises(TraceError, match="lacks wann"):
        make(str(path), {}, {"time": "wann", "prompt": "question"})


@pytest.mark.parametrize("packed", ["gzip", "zstd"])
def test_packed_files(tmp_path: Path, packed: str) -> None:
    text = FILES["sharegpt"][1].encode()
    if packed == "zstd":
        text = pytest.importorskip("zstandard").ZstdCompressor().compress(text)
    else:
        text = gzip.compress(text)
    path = tmp_path / "a.packed"
    path.write_bytes(text)
    assert make(str(path)).name == "sharegpt"
    assert len(next(iter(make(str(path)).sessions(0))).steps) == 2


def test_zstd_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfdxxxx")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(TraceError, match="pip install zstandard"):
        make(str(path))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [{"prompt": "One", "output_tokens": 3}, {"prompt": "Two", "output_tokens": 4}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    workload = make(str(tmp_path / "a.parquet"))
    assert workload.name == "custom"
    assert [s.steps[0].output.tokens for s in workload.sessions(0)] == [3, 4]


def test_data_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, subset: str | None, **options: Any) -> Iterator[dict[str, Any]]:
        asked.append((name, subset, options))
        return iter(json.loads(FILES["sharegpt"][1]))

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    workload = make("hf:someone/talks/small@test")
    assert workload.name == "sharegpt"
    assert len(list(workload.sessions(0))) == 1
    assert asked[0] == ("someone/talks", "small", {"split": "test", "streaming": True})
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TraceError, match="pip install datasets"):
        make("hf:someone/talks")


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    trace_files.write(tmp_path, "mini-swe-agent")
    (tmp_path / "b.traj.json").write_text(json.dumps(trace_files.MINI))
    (tmp_path / "notes.txt").write_text("nothing")
    workload = make(str(tmp_path))
    assert workload.name == "mini-swe-agent"
    assert len(list(workload.sessions(0))) == 2


def test_a_file_that_fits_nothing_is_told_what_was_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(trace_files.lines({"promt": "Who?", "reply": "Me"}))
    with pytest.raises(TraceError) as caught:
        make(str(path))
    told = str(caught.value)
    for part in ("fields promt, reply", "ShareGPT json", "Nearest is vLLM custom", "lacks prompt."):
        assert part in told
    assert """first line: '{"promt": "Who?", "reply": "Me"}'""" in told
    assert "--columns" in told
    path.write_text("hello\nworld\n")
    with pytest.raises(TraceError, match="is text of no known format"):
        make(str(path))


def test_what_is_wrong_in_a_line_is_said_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "output_tokens": "many"}\n')
    with pytest.raises(TraceError, match=r"a\.jsonl line 2: Expected `int`"):
        list(make(str(path)).sessions(0))
    path.write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(TraceError, match=r"a\.jsonl line 2: "):
        list(make(str(path)).sessions(0))


def test_times_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2026-03-01 10:00:05,9,1\n2026-03-01 10:00:01,8,1\n2026-03-01 10:00:03,7,1\n"
    )
    assert [s.at for s in make(str(path)).sessions(0)] == [0.0, 2.0, 4.0]


def test_large_arrays_are_read_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    talk = json.loads(FILES["sharegpt"][1])[0]
    talk["conversations"][0]["value"] = "w\u00f6rd " * 60_000
    path.write_text(json.dumps([talk] * 8, ensure_ascii=False), encoding="utf-8")
    assert len(list(make(str(path)).sessions(0))) == 8
    path.write_text(path.read_text()[:-500])
    with pytest.raises(TraceError, match="record 8: "):
        list(make(str(path)).sessions(0))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks(tmp_path: Path, end: str, mark: str) -> None:
    for name in ("custom", "azure", "burstgpt", "sharegpt", "claude-code"):
        file, text = FILES[name]
        path = tmp_path / file
        path.write_bytes((mark + text.replace("\n", end)).encode())
        plain = tmp_path / "plain" / file
        plain.parent.mkdir(exist_ok=True)
        plain.write_text(text)
        workload = make(str(path))
        assert workload.name == name
        assert list(workload.sessions(0)) == list(make(str(plain)).sessions(0))


def test_other_words_for_the_same(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    turns = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]
    path.write_text(trace_files.lines({"conversations": turns}))
    (one,) = make(str(path)).sessions(0)
    assert said(one.steps[0]) == [(Role.USER, "A?")]
    table = tmp_path / "prompts.csv"
    table.write_text('prompt,output_tokens\n"Who, me?",5\nYou,\n')
    first, second = make(str(table)).sessions(0)
    assert said(first.steps[0]) == [(Role.USER, "Who, me?")]
    assert (first.steps[0].output.tokens, second.steps[0].output.tokens) == (5, 128)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("[]", "is an empty list"),
        ("[1, 2]", "is text"),
        ('{"prompt": null}\n', "lacks prompt"),
        ('{"prompt": 5}\n', "lacks prompt as a text"),
        ('{"trajectory": 3}', "of no known format"),
        ('{"messages": [{"role": "user", "content": "a"}', "of no known format"),
        ("a,b\n1,2\n", "is csv of no known format, with the fields a, b"),
    ],
)
def test_odd_files_are_refused_in_words(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "odd"
    path.write_text(text)
    with pytest.raises(TraceError, match=says):
        make(str(path))


def test_what_is_odd_deep_in_a_record_is_refused_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    calls = {"role": "assistant", "content": "a", "tool_calls": ["x"]}
    path.write_text(trace_files.lines({"messages": [{"role": "user", "content": "q"}, calls]}))
    with pytest.raises(TraceError, match=r"odd\.jsonl: a record is not as conversations"):
        list(make(str(path)).sessions(0))
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,1\n")
    with pytest.raises(TraceError, match=r"odd\.jsonl line 2: TIMESTAMP: Invalid isoformat"):
        list(make(str(path)).sessions(0))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    talk = {"conversations": [{"from": "human", "value": "word " * 100_000}]}
    talk["conversations"].append({"from": "gpt", "value": "yes"})
    path = tmp_path / "large.json"
    path.write_text(json.dumps([talk] * 60))
    tracemalloc.start()
    try:
        for _ in make(str(path)).sessions(0):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 2


def test_the_models_own_tokenizer_counts(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: k for k, word in enumerate(["[UNK]", "a", "b", "c"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "a.jsonl"
    path.write_text(trace_files.lines({"prompt": "a b c " * 50}, {"prompt": "a b c " * 30}))
    one, other = make(str(path), {"tokenizer": str(tmp_path)}).sessions(0)
    assert (tokens(one.steps[0].prompt), tokens(other.steps[0].prompt)) == (150, 90)
    assert common(one.steps[0], other.steps[0]) == 64
    with pytest.raises(ValueError, match="--tokenizer"):
        list(make(str(path), {"tokenizer": str(path)}).sessions(0))


def test_times_of_every_kind() -> None:
    assert seconds_of("2026-03-01T10:00:00Z") == seconds_of("2026-03-01 10:00:00.0000000")
    assert seconds_of(1_772_000_000_000) == seconds_of("1772000000") == 1_772_000_000
    assert seconds_of(5, "ms") == 0.005
    with pytest.raises(ValueError, match="unit 'h'"):
        seconds_of(5, "h")
