"""docs/results.md made anew, small: the page, its charts and what it says of losses."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from loadgen.cli.main import main
from loadgen.reproduce.cases import ARMS, OURS, PEERS, SECTIONS, Case, cases
from loadgen.reproduce.page import page
from loadgen.reproduce.run import Outcome, run_case
from loadgen.reproduce.verdict import behind, best, geometric
from loadgen.results.schema import Arm, read_json


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return run_case((Case("hot", 40.0, 120, "hot"), ARMS))


def test_a_case_runs_every_arm_over_every_seed(outcome: Outcome) -> None:
    assert [arm.name for arm in outcome.arms] == list(ARMS)
    for arm in outcome.arms:
        assert arm.completed == arm.requests >= 240
        assert arm.repeats == 2
        assert arm.balance.work_max_over_mean >= 1.0
    assert [each.metric for each in outcome.against_best] == [
        "ttft_ms.mean",
        "ttft_ms.p90",
        "e2e_ms.mean",
    ]
    assert all(each.arm == OURS != each.baseline for each in outcome.against_best)


def test_the_page_says_every_number_and_every_loss(outcome: Outcome) -> None:
    slow = [changed(arm, 2.0) if arm.name == OURS else arm for arm in outcome.arms]
    fast = [changed(arm, 0.01) if arm.name == OURS else arm for arm in outcome.arms]
    for arms, loses in ((slow, True), (fast, False)):
        text, pictures = page([msgspec.structs.replace(outcome, arms=arms)], None)
        rival = best([arm for arm in arms if arm.name != OURS], "ttft_ms.mean")
        assert ("| hot 40/s | TTFT mean |" in text) == loses
        assert ("Nowhere by more than 2%" in text) != loses
        if loses:
            share = behind(next(a for a in arms if a.name == OURS), [rival], "ttft_ms.mean")
            assert f"| {rival.name} | +{share:.0%} |" in text
        for arm in arms:
            assert f"{arm.ttft_ms.mean:,.0f} | {arm.ttft_ms.p50:,.0f}" in text
        for picture in pictures:
            ElementTree.fromstring(picture.svg)
            assert picture.name in text
    for name in PEERS:
        assert f"{name} *" in text
    assert "our reading of other gateways' documents" in text
    for title in SECTIONS.values():
        assert f"## {title}" in text


def changed(arm: Arm, factor: float) -> Arm:
    ttft = msgspec.structs.replace(arm.ttft_ms, mean=arm.ttft_ms.mean * factor + factor - 0.01)
    ttft = msgspec.structs.replace(ttft, p90=arm.ttft_ms.p90 * factor)
    e2e = msgspec.structs.replace(arm.e2e_ms, mean=arm.e2e_ms.mean * factor)
    return msgspec.structs.replace(arm, ttft_ms=ttft, e2e_ms=e2e)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Processes, files and the trace that is not there; two small cases stand for all."""
    few = cases(None, scale=0.01)[:2]
    monkeypatch.setattr("loadgen.reproduce.command.cases", lambda *_, **__: few)
    monkeypatch.delenv("LOADGEN_TRACE", raising=False)
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "docs" / "results.md"
    assert main(["report", "--page", str(target), "--json", "all.json"]) == 0
    said = capsys.readouterr().out
    text = target.read_text()
    assert "no trace was given" in text
    assert "there was no results-engines.json" in text
    for image in re.findall(r"\]\((img/\S+\.svg)\)", text):
        assert (target.parent / image).is_file()
    for case in few:
        assert f"{case.name}: cache_aware to the best other" in said
    results = read_json(tmp_path / "all.json")
    assert len(results.arms) == len(few) * len(ARMS)
    assert main(["report", "--trace", "nowhere.jsonl"]) == 1
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_cases_differ_and_take_the_trace_in(tmp_path: Path) -> None:
    names = [case.name for case in cases(tmp_path / "trace")]
    assert len(set(names)) == len(names)
    assert {case.section for case in cases(tmp_path / "trace")} == set(SECTIONS)
    assert {case.section for case in cases(None)} == set(SECTIONS) - {"mooncake"}


def test_geometric_mean() -> None:
    assert geometric([1.0, 4.0]) == pytest.approx(2.0)
