"""Files as programs really leave them: cut off, packed badly, with other units, in many pieces."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loadgen.cli.main import main
from loadgen.results.schema import read_json
from loadgen.workloads import Session, TraceError, make
from loadgen.workloads.content import Conversation
from loadgen.workloads.traces import Trace
from loadgen.workloads.traces.recognise import cut_off
from loadgen.workloads.types import tokens

_LINE = {"timestamp": 0, "input_length": 100, "output_length": 20}


def lines(records: Sequence[object], end: str = "\n") -> str:
    return "\n".join(map(json.dumps, records)) + end


def played(path: Path) -> list[Session]:
    return list(make(str(path)).sessions(0))


def test_a_last_line_that_is_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    path.write_text(lines([{"prompt": "one"}, {"prompt": "two"}]) + '{"prompt": "thr')
    assert len(played(path)) == 2
    assert cut_off(str(path)) == [f"the last line of {path} is cut off and is left out"]
    path.write_text(lines([{"prompt": "one"}, {"prompt": "two"}], end=""))
    assert len(played(path)) == 2
    assert cut_off(str(path)) == []


def test_a_cut_line_is_said_in_the_results(tmp_path: Path) -> None:
    path, out = tmp_path / "live.jsonl", tmp_path / "r"
    path.write_text(lines([{"prompt": "one"}, {"prompt": "two"}]) + '{"prompt": "thr')
    asked = ["simulate", "--workload", str(path), "--policies", "round_robin", "--json", str(out)]
    assert main(asked) == 0
    assert "is cut off and is left out" in read_json(out).description


def test_a_broken_line_within_a_file_is_no_cut(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(lines([{"prompt": "one"}]) + '{"prompt": "t\n' + lines([{"prompt": "two"}]))
    with pytest.raises(TraceError, match=r"broken\.jsonl line 2: .* \(read as vLLM custom"):
        played(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (lines([{"prompt": "a", "output_tokens": -1}]), "line 1: .*>= 0.*output_tokens"),
        (lines([{**_LINE, "input_length": 10**30}]), r"line 1: .*input_length` \(read as lengths"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no rows below its first line"),
        ('{"prompt": NaN}\n', "first record cannot be read: .* 1: JSON is malformed"),
        ('[{"a": ' + '{"a": ' * 100_000, "record 1: is nested too deep"),
        ('{"custom_id": "a", "url": "/v1/completions", "body": {"max_tokens": -2}}\n', "line 1: b"),
        ("\0\1,\2\n", "is no text.*Traces are jsonl, json, csv"),
        ("", "is empty: there is no request"),
        ("12,5,hello\n13,6,bye\n", "first line has values and no names of columns: '12,5,hello'"),
        (
            "hello\n",
            "odd is text of no known format. Its first line: 'hello'. Looked for: .*ShareGPT",
        ),
        ('{"conversations": "no"}\n', "Nearest is ShareGPT json, which lacks from and value"),
        (
            "INFO 07-25 02:41:20 [logger.py:43] Received request cmpl-1: params: "
            "SamplingParams(n=1, max_tokens=100), lora_request: None.\n",
            "1 requests without their prompts, .*VLLM_LOGGING_LEVEL=DEBUG",
        ),
    ],
)
def test_what_cannot_be_played_is_said(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "odd"
    path.write_text(text)
    with pytest.raises(TraceError, match=says):
        played(path)


def test_folders_and_urls_are_told_apart_from_files(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(TraceError, match="is a folder without any file"):
        make(str(tmp_path))
    for url in ("https://host/trace.jsonl", "mooncake:https://host/trace.jsonl", "s3://a/b"):
        with pytest.raises(ValueError, match=r"is a URL.*download it"):
            make(url)


def test_a_packed_file_that_is_cut_off_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    whole = gzip.compress(lines([{"prompt": f"{i} word"} for i in range(20_000)]).encode())
    path.write_bytes(whole[:-100])
    with pytest.raises(TraceError, match=r"trace\.jsonl cannot be unpacked"):
        played(path)
    zstandard = pytest.importorskip("zstandard")
    path.write_bytes(zstandard.compress(b'{"prompt": "a"}\n' * 9)[:6] + b"garbage" * 9)
    with pytest.raises(TraceError, match=r"trace\.jsonl cannot be unpacked"):
        played(path)


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "trace.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(TraceError, match=r"trace\.parquet is not whole"):
        played(path)


@pytest.mark.parametrize(
    ("stamps", "at"),
    [
        ([1732752000000, 1732752000500], 0.5),
        ([1732752000, 1732752003], 3.0),
        (["2025-01-01T00:00:00.5+02:00", "2025-01-01T00:00:02.5+02:00"], 2.0),
        (["0.5", "2"], 1.5),
    ],
    ids=["milliseconds since 1970", "seconds since 1970", "dates", "numbers as text"],
)
def test_times_of_lengths_tell_their_unit(tmp_path: Path, stamps: list[Any], at: float) -> None:
    path = tmp_path / "trace"
    path.write_text(lines([{**_LINE, "timestamp": stamp} for stamp in stamps]))
    assert [session.at for session in played(path)] == pytest.approx([0.0, at])


def test_whole_times_are_said_to_be_taken_for_milliseconds(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    for stamps, settings, said in (
        ([0, 5], {}, True),
        ([0, 5], {"unit": "s"}, False),
        ([0.5, 5], {}, False),
        ([1732752000, 1732752003], {}, False),
    ):
        path.write_text(lines([{**_LINE, "timestamp": stamp} for stamp in stamps]))
        trace = make(str(path), settings)
        assert isinstance(trace, Trace)
        assert any("milliseconds" in each for each in trace.assumptions) == said


def test_blocks_may_have_texts_for_names(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    for size in (100, 1500):
        blocks = [[f"h{i}" for i in ids] for ids in ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 7])]
        names = blocks if size == 100 else [each[-3:] for each in blocks]
        record = {**_LINE, "input_length": size}
        path.write_text(lines([{**record, "hash_ids": each} for each in names]))
        first, second = (session.steps[0].prompt for session in played(path))
        assert first[:2] == second[:2]
        assert first[-1] != second[-1]


@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_cells_may_be_parted_by_others_than_commas(tmp_path: Path, between: str) -> None:
    path = tmp_path / "trace.csv"
    rows = [("TIMESTAMP", "ContextTokens", "GeneratedTokens"), ("2024-05-10 00:00:00", "70", "5")]
    path.write_text("\n".join(between.join(row) for row in rows))
    (session,) = played(path)
    assert tokens(session.steps[0].prompt) == 70


def test_failed_rows_of_burstgpt_may_have_empty_cells(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    path.write_text(f"{head}5,GPT-4,472,18,490,API log\n9,GPT-4,,,,API log\n")
    assert len(played(path)) == 1


def test_guidellms_name_for_the_answers_length(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(lines([{"prompt": "word", "output_tokens_count": 33}]))
    assert played(path)[0].steps[0].output.tokens == 33


@pytest.mark.parametrize("list_", [False, True])
def test_half_a_surrogate_pair_is_a_question_mark(tmp_path: Path, list_: bool) -> None:
    path = tmp_path / "prompts"
    record = '{"prompt": "a\\ud83d b"}'
    path.write_text(f"[{record}]" if list_ else f"{record}\n{record}\n")
    content = played(path)[0].steps[0].content
    assert isinstance(content, Conversation)
    assert content.messages[0].text == "a? b"


def test_coloured_logs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "vllm.log"
    path.write_text(
        "\x1b[32mINFO\x1b[0m 07-25 02:41:20 [logger.py:43] Received request cmpl-1: prompt: 'a b', "
        "params: SamplingParams(n=1, max_tokens=100), prompt_token_ids: None.\n"
    )
    assert played(path)[0].steps[0].output.tokens == 100


def test_what_claude_code_wrote_itself_is_no_request(tmp_path: Path) -> None:
    path = tmp_path / "session.jsonl"

    def line(number: int, role: str, text: str, model: str) -> dict[str, Any]:
        stamp = f"2026-03-01T22:38:{number:02d}.557Z"
        message = {"role": role, "content": text, "model": model, "id": f"m{number}"}
        return {
            "type": role,
            "message": message,
            "sessionId": "S",
            "uuid": str(number),
            "timestamp": stamp,
        }

    path.write_text(
        lines(
            [
                line(1, "user", "fix", ""),
                line(2, "assistant", "API Error", "<synthetic>"),
                line(3, "assistant", "done", "claude"),
            ]
        )
    )
    (session,) = played(path)
    (step,) = session.steps
    assert isinstance(step.content, Conversation)
    assert [each.text for each in step.content.messages] == ["fix"]


def test_mini_swe_agents_first_version_has_its_times_in_the_messages(tmp_path: Path) -> None:
    path = tmp_path / "a.traj.json"
    said = [("system", 0), ("user", 1), ("assistant", 5), ("user", 8), ("assistant", 9)]
    messages = [{"role": role, "content": "text", "timestamp": at} for role, at in said]
    path.write_text(json.dumps({"trajectory_format": "mini-swe-agent-1", "messages": messages}))
    (session,) = played(path)
    assert [step.pause for step in session.steps] == [0.0, 3.0]


@pytest.mark.parametrize("name", ["event-{:05d}-1f2e-3d.json", "{}.json"])
def test_events_in_files_of_their_own_are_one_conversation(tmp_path: Path, name: str) -> None:
    for run in ("one", "two"):
        folder = tmp_path / run / "events"
        folder.mkdir(parents=True)
        (folder.parent / "base_state.json").write_text('{"id": "x"}')
        for place in range(12):
            event = {
                "kind": "MessageEvent",
                "timestamp": f"2025-11-01T00:00:{place:02d}",
                "source": "agent" if place % 2 else "user",
                "llm_message": {"content": [{"type": "text", "text": f"said {place}"}]},
            }
            (folder / name.format(place)).write_text(json.dumps(event))
    workload = make(str(tmp_path))
    assert isinstance(workload, Trace)
    assert workload.name == "openhands-sdk"
    sessions = list(workload.sessions(0))
    assert [len(session.steps) for session in sessions] == [6, 6]
    last = sessions[0].steps[-1].content
    assert isinstance(last, Conversation)
    assert [each.text for each in last.messages] == [f"said {place}" for place in range(11)]
