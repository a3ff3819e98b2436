"""The tables a command ends with: whole in any terminal."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from loadgen.results.metrics import summarise
from loadgen.results.records import Records
from loadgen.results.schema import Arm, Difference, Goodput, Results, Savings
from loadgen.show.replica_names import short_names
from loadgen.show.tables import show

ARMS = ("round_robin", "consistent_hash", "cache_aware")


def arm(name: str, *, load: float = 0.0, replicas: int = 8, failed: int = 0) -> Arm:
    records = Records()
    for number in range(160):
        records.add(
            session=number, step=0, scheduled=number * 0.1, sent=number * 0.1,
            first=number * 0.1 + 10.5, end=number * 0.1 + 21.0, tokens=1000, possible_tokens=900,
            prompt_tokens=1000, cached_tokens=500, output_tokens=5,
            replica=f"replica-{number % replicas}", reason="timeout" if number < failed else "",
        )  # fmt: skip
    made = summarise(name, records, load=load)
    made.goodput = Goodput({"ttft": 500.0}, 12.34, 0.9)
    made.savings = Savings(1e6, 1234.0, 12.34, 56_789.0)
    return made


def comparison(**changed: int) -> Results:
    found = [
        Difference(metric, ARMS[0], name, -1234.5, -2345.6, -1000.1, -0.5)
        for name in ARMS[1:]
        for metric in ("ttft_ms.p90", "e2e_ms.mean")
    ]
    found.append(Difference("hit_rate", ARMS[0], ARMS[2], 0.123, 0.1, 0.2, 0.5))
    return Results(
        "compare", "agent", [arm(name, **changed) for name in ARMS], differences=found,
        settings={"gpus": "1", "gpu_hour": "2.5"},
    )  # fmt: skip


def sweep() -> Results:
    arms = [arm(name, load=load) for load in (10.0, 20.0) for name in ARMS]
    return Results("sweep", "agent", arms, axis="sessions at a time")


def printed(results: Results, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(results, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("results", [comparison(), sweep()], ids=["compare", "sweep"])
def test_nothing_is_cut_off(results: Results, width: int) -> None:
    text = printed(results, width)
    assert "…" not in text
    for part in (*ARMS, "50.0%"):
        assert part in text
    tables = [line for line in text.splitlines() if line.startswith(" ")]
    assert max(len(line.rstrip()) for line in tables) <= width


def test_what_does_not_fit_is_named() -> None:
    narrow = printed(sweep(), 60)
    left_out = next(line for line in narrow.splitlines() if line.startswith("Not in 60 columns"))
    assert "TTFT p90, ms" in left_out
    assert "Hit rate" not in left_out
    assert "Not in" not in printed(sweep(), 200)


def test_a_sweep_has_goodput_balance_and_savings() -> None:
    text = printed(sweep(), 200)
    for title in ("Goodput", "Busiest", "GPU-s", "Money"):
        assert title in text
    assert "load in sessions at a time" in text
    assert "12.34" in text


def test_intervals_are_signed_and_in_the_metrics_unit() -> None:
    text = printed(comparison(), 100)
    assert "cache_aware against round_robin, with 95% intervals" in text
    assert "-2,346 to -1,000" in text
    line = next(line for line in text.splitlines() if "Hit rate, points" in line)
    assert line.split() == ["Hit", "rate,", "points", "+12.3", "+50%", "+10.0", "to", "+20.0"]


def test_the_price_and_the_objectives_are_named() -> None:
    text = printed(comparison(), 100)
    assert "Goodput counts requests with TTFT up to 500 ms." in text
    assert "with 1 GPU a replica, at 2.5 for a GPU's hour." in text
    for title, value in (("Money saved", "12.34"), ("Money saved, a million requests", "56,789")):
        assert any(title in line and value in line for line in text.splitlines())


def test_replicas_are_listed_until_there_are_many() -> None:
    few, many = printed(comparison(), 100), printed(comparison(replicas=40), 100)
    assert any(line.split()[:2] == ["replica-7", "20,"] for line in few.splitlines())
    assert "replica-7" not in many
    assert "cache_aware: 40 replicas, 4 to 4 requests, hit rates 50.0% to 50.0%" in many


def test_replicas_with_long_names_are_listed_under_each_other() -> None:
    results = comparison()
    for each in results.arms:
        each.replicas = [
            msgspec.structs.replace(replica, name=f"http://10.0.3.1{place}:8000")
            for place, replica in enumerate(each.replicas)
        ]
    narrow = printed(results, 60)
    assert "…" not in narrow
    assert narrow.count("http://10.0.3.17:8000") == 2
    assert printed(results, 100).count("http://10.0.3.17:8000") == 1


def test_what_is_not_known_is_a_dash() -> None:
    results = Results("run", "agent", [summarise("x", Records())])
    text = printed(results, 80)
    for title in ("Hit rate", "Most possible", "TTFT", "Busiest"):
        assert title not in text
    measured = comparison()
    measured.arms[0].hit_rate = measured.arms[0].balance = None
    lines = [line.split() for line in printed(measured, 80).splitlines()]
    assert ["Hit", "rate", "-", "50.0%", "50.0%"] in lines
    assert ["Busiest", "replica's", "work", "/", "mean", "-", "1.00", "1.00"] in lines


def test_the_same_failures_are_said_once() -> None:
    text = printed(comparison(failed=3), 100)
    assert "round_robin, consistent_hash, cache_aware: 3 requests failed in each: timeout" in text


def test_short_names_keep_ports_whole() -> None:
    assert short_names(["replica-0", "replica-1", "replica-10"]) == ["0", "1", "10"]
    assert short_names(["http://10.0.0.1:8001", "http://10.0.0.1:8002"]) == ["8001", "8002"]
    assert short_names(["10.0.3.17:8000", "10.0.3.18:8000"]) == ["17:8000", "18:8000"]
    assert short_names(["alone"]) == ["alone"]
    assert short_names(["same", "same"]) == ["same", "same"]
