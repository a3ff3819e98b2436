"""The cheapest fleet that holds objectives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadgen.cli.main import main
from loadgen.engine import PRESETS
from loadgen.engine.presets import GPUS
from loadgen.planning.check import Thinned
from loadgen.planning.objective import measured, parse_objectives
from loadgen.results.records import Records
from loadgen.workloads import make

SMALL = ["plan", "--workload", "agent", "--rate", "12", "--duration", "25s", "--preset", "8b-h100"]
SMALL += ["--set", "most_tokens=12000", "--repeats", "2"]


def records(*ttfts: float) -> Records:
    made = Records()
    for number, ttft in enumerate(ttfts):
        made.add(
            session=number,
            step=0,
            scheduled=0.0,
            sent=0.0,
            first=ttft,
            end=ttft + 1.0,
            tokens=10,
            possible_tokens=0,
            output_tokens=11,
        )
    return made


def test_objectives_are_measured_with_their_intervals() -> None:
    objectives = parse_objectives("ttft_p90=2s,tpot_p50=50ms")
    assert [(each.name, each.most) for each in objectives] == [
        ("ttft_p90", 2.0),
        ("tpot_p50", 0.05),
    ]
    ttft, tpot = measured([records(*(k / 100 for k in range(1, 101)))], objectives)
    assert ttft.value == pytest.approx(0.9)
    assert 0.7 < ttft.low < 0.9 < ttft.high <= 1.0
    assert tpot.low == pytest.approx(tpot.value) == pytest.approx(0.1)
    (never,) = measured([Records()], objectives[:1])
    assert never.value == float("inf")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ttft_p80=2s", "did you mean ttft_p"),
        ("ttft_p90", "write a time above 0, such as ttft_p90=500ms"),
        ("ttft_p90=0s", "above 0"),
        ("ttft_p90=soon", "--slo ttft_p90=soon"),
        ("", "at least one"),
        ("ttft_p90=1s,ttft_p90=2s", "each objective once"),
    ],
)
def test_objectives_that_make_no_sense(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_objectives(text)


def test_a_plan_is_the_fewest_replicas_that_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "plan.json", tmp_path / "plan.md"
    flags = ["--slo", "ttft_p90=150ms,tpot_p90=14ms", "--policies", "cache_aware,round_robin"]
    flags += ["--gpu-hour", "2", "--json", str(out), "--markdown", str(page)]
    assert main([*SMALL, *flags]) == 0
    plan = json.loads(out.read_text())
    best = plan["choices"][0]
    replicas = best["trial"]["fleet"]["replicas"]
    assert best["trial"]["broken"] == []
    assert best["cost"]["per_day"] == replicas * 2 * 24
    assert all(choice["cost"]["gpus"] >= best["cost"]["gpus"] for choice in plan["choices"])
    around = {each["trial"]["fleet"]["replicas"]: each["trial"] for each in plan["around"]}
    assert set(around) == {n for n in range(replicas - 1, replicas + 3) if n}
    if replicas > 1:
        assert around[replicas - 1]["broken"]
    for name in ("measured",):
        for value in around[replicas][name]:
            assert value["low"] <= value["value"] <= value["high"]
    breaking = plan["breaking"]
    assert breaking["breaks"]["broken"]
    assert 1.0 <= breaking["holds"] < breaking["at"] <= breaking["holds"] * 1.06
    told = capsys.readouterr().out
    assert "is the cheapest that holds ttft_p90 <= 150 ms, tpot_p90 <= 14 ms" in " ".join(
        told.split()
    )
    assert "| fleet | GPUs | a day |" in page.read_text()


def test_what_cannot_be_held_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--slo", "tpot_p50=1ms", "--most-replicas", "2"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "2 x 8b-h100, cache_aware does not hold tpot_p50" in told
    assert "No fleet that was looked at holds tpot_p50 <= 1 ms" in told


def test_a_share_of_the_sessions_keeps_their_times() -> None:
    whole = make("unique")
    from itertools import islice

    some = list(islice(Thinned(whole, 0.25).sessions(3), 500))
    assert some == list(islice(Thinned(whole, 0.25).sessions(3), 500))
    assert 1600 < some[-1].number < 2500


def test_every_preset_has_its_gpus() -> None:
    assert set(GPUS) == set(PRESETS)


def test_a_plan_is_checked_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.planning.check.SECONDS", 2.0)
    # Where it breaks is the other test's.
    monkeypatch.setattr("loadgen.planning.search.MOST_LOAD", 1.0)
    out = tmp_path / "plan.json"
    flags = ["--workload", "unique", "--set", "prompt_tokens=600", "--set", "output_tokens=8"]
    flags += ["--rate", "12", "--duration", "6s", "--preset", "8b-h100", "--repeats", "1"]
    assert main(["plan", *flags, "--slo", "ttft_p90=3s", "--check", "--json", str(out)]) == 0
    checked = json.loads(out.read_text())["checked"]
    assert checked["replicas"] >= 1
    assert checked["simulated"]["requests"] == checked["live"]["requests"] > 0, "the same sessions"
    for which in ("live", "simulated"):
        (measured,) = checked[which]["measured"]
        assert measured["name"] == "ttft_p90"
        assert 0 < measured["value"] < 30
