"""Traces and request logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadgen.workloads import Session, TraceError, UpperBound, make
from loadgen.workloads.types import tokens
from router.prompt.spans import SPANS


def written(path: Path, *lines: object) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def asked(**changes: object) -> dict[str, object]:
    """A good line of a trace, changed."""
    return {
        "timestamp": 20,
        "input_length": 500,
        "output_length": 1,
        "hash_ids": [1],
        **changes,
    }


def sessions(spec: str) -> list[Session]:
    return list(make(spec).sessions(0))


def test_mooncake_blocks_become_segments(tmp_path: Path) -> None:
    first = {"timestamp": 0, "input_length": 1100, "output_length": 7, "hash_ids": [1, 2, 3]}
    second = {"timestamp": 2500, "input_length": 1200, "output_length": 0, "hash_ids": [1, 2, 9]}
    one, two = sessions("mooncake:" + written(tmp_path / "trace", first, second))
    assert (one.at, two.at) == (0.0, 2.5)
    assert [part.tokens for part in one.steps[0].prompt] == [512, 512, 76]
    assert one.steps[0].prompt[:2] == two.steps[0].prompt[:2]
    assert one.steps[0].prompt[2].id != two.steps[0].prompt[2].id
    assert (one.steps[0].output.tokens, two.steps[0].output.tokens) == (7, 1)


def bucketed(path: Path, *stamps: float) -> str:
    return written(path, *[asked(timestamp=stamp, hash_ids=[k]) for k, stamp in enumerate(stamps)])


def test_lines_of_one_time_stamp_are_spread_up_to_the_next(tmp_path: Path) -> None:
    stamps = [0] * 40 + [2999] * 40 + [6000] + [40_000] * 40
    workload = make("mooncake:" + bucketed(tmp_path / "t", *stamps))
    times = [session.at for session in workload.sessions(1)]
    assert times == sorted(times)
    for first, start, end in ((0, 0.0, 2.999), (40, 2.999, 6.0), (81, 40.0, 43.0)):
        inside = times[first : first + 40]
        assert start <= inside[0] < start + 0.6
        assert end - 0.6 < inside[-1] < end
        assert len(set(inside)) == 40
    assert times[80] == 6.0
    assert [session.at for session in workload.sessions(1)] == times
    assert [session.at for session in workload.sessions(2)] != times
    assert [session.number for session in workload.sessions(1)] == list(range(121))


def test_time_stamps_can_be_kept_raw(tmp_path: Path) -> None:
    spec = "mooncake:" + bucketed(tmp_path / "t", 0, 0, 3000, 3000)
    workload = make(spec, {"raw": "true"})
    assert [session.at for session in workload.sessions(1)] == [0.0, 0.0, 3.0, 3.0]


def test_long_prompts_can_be_left_out(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 0, "input_length": size, "output_length": 1, "hash_ids": [1, 2]}
        for size in (600, 1000)
    ]
    workload = make("mooncake:" + written(tmp_path / "t", *lines), {"most_tokens": "700"})
    assert [tokens(s.steps[0].prompt) for s in workload.sessions(0)] == [600]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (asked(input_length=600), "line 2.*do not cover"),
        ({"timestamp": 20}, "line 2"),
        (asked(input_length=-5), "line 2.*input_length"),
        (asked(input_length=0), "line 2.*input_length"),
        (asked(output_length=-1), "line 2.*output_length"),
        (asked(timestamp=-1), "line 2.*timestamp"),
        (asked(timestamp=5), "line 2: timestamp 5 comes after 10: sort"),
    ],
)
def test_a_bad_trace_names_its_line(tmp_path: Path, line: object, says: str) -> None:
    with pytest.raises(TraceError, match=says):
        sessions("mooncake:" + written(tmp_path / "trace", asked(timestamp=10), line))


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    line = json.dumps(asked())
    path.write_text(f"{line}\n\n{line}\n\n \n")
    assert len(sessions(f"mooncake:{path}")) == 2
    path.write_text(f"{json.dumps({'time': 1.0, 'prompt_bytes': 50, 'blocks': []})}\n\n")
    assert len(sessions(f"replay:{path}")) == 1


def test_a_trace_without_requests_says_so(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="is empty"):
        sessions("mooncake:" + written(tmp_path / "trace"))
    workload = make("mooncake:" + written(tmp_path / "trace", asked()), {"most_tokens": "99"})
    with pytest.raises(TraceError, match="has no request of at most 99 tokens"):
        list(workload.sessions(0))


def test_a_request_log_is_replayed(tmp_path: Path) -> None:
    size = SPANS[3] + 100
    common = {"prompt_tokens": size // 4, "prompt_bytes": size, "output_tokens": 5}
    late = {"time": 1012.5, "blocks": [11, 12, 99], **common}
    early = {"time": 1010.0, "blocks": [11, 12, 13], **common}
    other = {"time": 1011.0, "prompt_tokens": 3}
    one, two = sessions("replay:" + written(tmp_path / "log", late, other, early))
    assert (one.at, two.at) == (0.0, 2.5)
    assert tokens(one.steps[0].prompt) == tokens(two.steps[0].prompt) == size // 4
    bound = UpperBound(16)
    assert bound.add(one.steps[0]) == 0
    assert bound.add(two.steps[0]) == SPANS[2] // 4 // 16 * 16


def test_a_log_without_blocks_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="--access-log-blocks"):
        sessions("replay:" + written(tmp_path / "log", {"time": 1.0}))
