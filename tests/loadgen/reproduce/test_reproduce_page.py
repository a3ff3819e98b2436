"""docs/design/results.md made anew, small: the page, its charts and what it says of losses."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from loadgen.cli.main import main
from loadgen.reproduce.cases import ARMS, OURS, PEERS, POOLED, SECTIONS, Case, cases
from loadgen.reproduce.fleets import H100_32B, Fleet, pooled
from loadgen.reproduce.page import page
from loadgen.reproduce.run import Outcome, run_case
from loadgen.reproduce.verdict import behind, best, geometric, rivals
from loadgen.results.schema import Arm, read_json


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return run_case((Case("hot", 40.0, 120, "hot"), ARMS))


def test_a_case_runs_every_arm_over_every_seed(outcome: Outcome) -> None:
    assert [arm.name for arm in outcome.arms] == list(ARMS)
    for arm in outcome.arms:
        assert len(arm.replicas) == (1 if arm.name == POOLED else 8)
        assert arm.completed == arm.requests >= 240
        assert arm.repeats == 2
        assert arm.balance.work_max_over_mean >= 1.0
    assert [each.metric for each in outcome.against_best] == [
        "ttft_ms.mean",
        "ttft_ms.p90",
        "e2e_ms.mean",
        "ttft_ms.p99",
    ]
    assert all(each.arm == OURS != each.baseline for each in outcome.against_best)


def test_the_page_says_every_number_and_every_loss(outcome: Outcome) -> None:
    slow = [changed(arm, 2.0) if arm.name == OURS else arm for arm in outcome.arms]
    fast = [changed(arm, 0.01) if arm.name == OURS else arm for arm in outcome.arms]
    for arms, loses in ((slow, True), (fast, False)):
        text, pictures = page([msgspec.structs.replace(outcome, arms=arms)], None)
        rival = best(rivals(arms), "ttft_ms.mean")
        assert ("| hot 40/s | TTFT mean |" in text) == loses
        assert ("Nowhere, in any of 4 comparisons" in text) != loses
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
    assert max(len(line) for line in text.split("\n")) <= 400
    assert "our reading of other gateways' documents" in text
    for title in SECTIONS.values():
        assert f"## {title}" in text


def changed(arm: Arm, factor: float) -> Arm:
    ttft = msgspec.structs.replace(arm.ttft_ms, mean=arm.ttft_ms.mean * factor + factor - 0.01)
    ttft = msgspec.structs.replace(ttft, p90=arm.ttft_ms.p90 * factor, p99=arm.ttft_ms.p99 * factor)
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
    target = tmp_path / "docs" / "design" / "results.md"
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


def test_about_half_of_the_cases_are_unseen_and_the_page_says_which(
    tmp_path: Path, outcome: Outcome
) -> None:
    every = cases(tmp_path / "trace")
    chosen = [case for case in every if case.chosen]
    assert 0.3 < len(chosen) / len(every) < 0.55
    mine = msgspec.structs.replace(outcome.case, chosen=True)
    text, _ = page([outcome, msgspec.structs.replace(outcome, case=mine)], None)
    assert "were chosen on 1 of the 2 cases" in text
    assert "**hot 40/s** (chosen on): " in text
    assert "**hot 40/s**: " in text


def test_the_page_says_where_it_is_worse_than_least_loaded(outcome: Outcome) -> None:
    text, _ = page([outcome], None)
    assert "In no case is its TTFT mean or end to end mean more than 2% above" in text
    slow = [changed(arm, 99.0) if arm.name == OURS else arm for arm in outcome.arms]
    text, _ = page([msgspec.structs.replace(outcome, arms=slow)], None)
    assert "Where it is worse than `least_loaded` by more than 2%" in text


def test_a_pooled_server_is_a_bound_and_no_rival(outcome: Outcome) -> None:
    by = {arm.name: arm for arm in outcome.arms}
    assert by[POOLED].ttft_ms.mean < min(arm.ttft_ms.mean for arm in rivals(outcome.arms))
    assert POOLED not in {each.baseline for each in outcome.against_best}
    one, eight = pooled(H100_32B.engine, 1), pooled(H100_32B.engine, 8)
    assert one == H100_32B.engine
    assert eight.cache_tokens == 8 * one.cache_tokens


def test_replicas_that_are_or_become_slow() -> None:
    half = Fleet(H100_32B.engine, replicas=4, slow=2, times=2.0)
    assert [each.prefill_rate for each in half.engines] == [
        H100_32B.engine.prefill_rate / times for times in (1, 1, 2, 2)
    ]
    assert half.changes(60.0) == []
    late = Fleet(H100_32B.engine, replicas=4, slow=1, times=3.0, since=0.25)
    assert set(late.engines) == {H100_32B.engine}
    (change,) = late.changes(60.0)
    assert (change.at, change.slot) == (15.0, 3)
    assert change.params.step_base_seconds == 3 * H100_32B.engine.step_base_seconds


def test_geometric_mean() -> None:
    assert geometric([1.0, 4.0]) == pytest.approx(2.0)
