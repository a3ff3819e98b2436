"""Every request written, and results made of them again; two results compared."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from loadgen.cli.main import main
from loadgen.results.diff import diff, worse
from loadgen.results.export import read_records, results_again
from loadgen.results.schema import Results, ResultsError, read_json
from loadgen.show.markdown import markdown

SMALL = ["simulate", "--workload", "agent", "--rate", "6", "--duration", "40s", "--replicas", "3"]


def made(folder: Path, name: str, *flags: str, ending: str = "jsonl") -> tuple[Path, Path]:
    results, records = folder / f"{name}.json", folder / f"{name}.{ending}"
    assert main([*SMALL, "--json", str(results), "--records", str(records), *flags]) == 0
    return results, records


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_results_are_made_again_from_requests(tmp_path: Path, ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    flags = ["--goodput", "ttft:300", "--repeats", "2"]
    path, records = made(tmp_path, "a", *flags, ending=ending)
    first, again = read_json(path), results_again(records)
    assert [arm.name for arm in again.arms] == [arm.name for arm in first.arms]
    for mine, theirs in zip(again.arms, first.arms, strict=True):
        for field in type(mine).__struct_fields__:
            if field not in ("savings", "reuse", "extra", "duration_s"):
                assert getattr(mine, field) == getattr(theirs, field), field
    assert again.differences == first.differences
    assert again.made == first.made
    out = tmp_path / "again.json"
    assert main(["report", str(records), "--json", str(out)]) == 0
    assert read_json(out).arms[0].ttft_ms == first.arms[0].ttft_ms


def test_a_row_tells_times_tokens_replica_and_decision(tmp_path: Path) -> None:
    _, records = made(tmp_path, "a", "--policies", "cache_aware")
    head, *rows = [json.loads(line) for line in records.read_text().splitlines()]
    assert head["records"] == 1
    assert head["results"]["made"]["command"].startswith("warmroute-loadgen simulate")
    row = rows[-1]
    assert row["scheduled"] <= row["first"] <= row["end"]
    assert row["prompt_tokens"] >= row["cached_tokens"]
    assert row["replica"].startswith("replica-")
    assert row["decision"]
    _, runs = read_records(records)
    assert len(runs[0].records) == len(rows)


def test_broken_rows_are_told_with_their_line(tmp_path: Path) -> None:
    _, records = made(tmp_path, "a")
    with records.open("a") as file:
        file.write('{"arm": 3}\n')
    lines = len(records.read_text().splitlines())
    with pytest.raises(ResultsError, match=f"line {lines}: "):
        results_again(records)


def test_the_same_sessions_before_and_after_are_paired(tmp_path: Path) -> None:
    before, _ = made(tmp_path, "a", "--policies", "round_robin")
    after, _ = made(tmp_path, "b", "--policies", "cache_aware")
    found = diff(read_json(before), read_json(after))
    assert [arm.name for arm in found.arms] == ["before", "after"]
    hits = next(each for each in found.differences if each.metric == "hit_rate")
    assert 0 < hits.low < hits.value < hits.high
    assert "The same sessions" in found.description
    assert worse(found) == []
    assert {each.metric for each in worse(diff(read_json(after), read_json(before)))} >= {
        "hit_rate",
        "ttft_ms.mean",
    }


def test_nothing_is_certain_between_equals(tmp_path: Path) -> None:
    before, _ = made(tmp_path, "a")
    after, _ = made(tmp_path, "b")
    found = diff(read_json(before), read_json(after))
    assert len(found.arms) == 4
    assert all(each.low <= each.value == 0 <= each.high for each in found.differences)
    other, _ = made(tmp_path, "c", "--seed", "9")
    unpaired = diff(read_json(before), read_json(other))
    assert "Not the same sessions" in unpaired.description
    assert "hit_rate" not in {each.metric for each in worse(unpaired)}
    assert "not the same: --seed is 9, not 0" in unpaired.warnings
    spread = [each.high - each.low for each in unpaired.differences]
    assert min(spread) > 0


def test_check_fails_where_something_got_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better, _ = made(tmp_path, "a", "--policies", "cache_aware")
    bad, records = made(tmp_path, "b", "--policies", "round_robin")
    page = tmp_path / "diff.md"
    assert main(["diff", str(better), str(bad), "--check", "--markdown", str(page)]) == 1
    assert "after" in capsys.readouterr().out
    assert "**worse**" in page.read_text()
    assert main(["diff", str(better), str(records)]) == 0
    assert main(["diff", str(better), str(tmp_path / "none")]) == 2


def test_files_without_requests_say_so(tmp_path: Path) -> None:
    path, _ = made(tmp_path, "a")
    old = read_json(path)
    for arm in old.arms:
        arm.sample = None
    found = diff(old, read_json(path))
    assert found.differences == []
    assert "no intervals" in found.warnings[0]
    with pytest.raises(ResultsError, match="no arm of one is in the other"):
        diff(old, Results("run", "agent", [msgspec.structs.replace(old.arms[0], name="x")]))


def test_markdown_has_what_a_reviewer_asks(tmp_path: Path) -> None:
    path, _ = made(tmp_path, "a", "--goodput", "ttft:500")
    results = read_json(path)
    text = markdown(results)
    assert text.startswith("### simulate: agent\n")
    for part in ("| | round_robin | cache_aware |", "95%:", "| step of a session |", "- machine: "):
        assert part in text
    assert "- engine: simulated 32b-2xh100" in text
    assert all(
        len(line.split(" | ")) == 3
        for line in text.splitlines()
        if line.startswith("| ") and "step" not in line and not line[2].isdigit()
    )
