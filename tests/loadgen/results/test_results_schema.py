"""Results on disk: what is written is what docs/operate/loadgen.md promises."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import msgspec
import pytest

from loadgen.results.conclusion import conclude
from loadgen.results.metrics import summarise
from loadgen.results.records import Records
from loadgen.results.savings import Price, savings
from loadgen.results.schema import (
    Arm,
    Difference,
    Results,
    ResultsError,
    read_json,
    schema,
    to_csv,
    write_json,
)


def arm(name: str, ttft: float, cached: int, *, failed: int = 0, load: float = 0.0) -> Arm:
    """Twenty requests a second apart, and some that failed."""
    records = Records()
    for number in range(20):
        records.add(
            session=number, step=0, scheduled=float(number), sent=float(number),
            first=number + ttft, end=number + ttft + 1, tokens=100, possible_tokens=90,
            prompt_tokens=100, cached_tokens=cached, output_tokens=11,
            replica=f"r{number % 2}", reason="timeout" if number < failed else "",
        )  # fmt: skip
    return summarise(name, records, load=load)


def results() -> Results:
    return Results("compare", "agent", [arm("base", 0.4, 20), arm("new", 0.1, 80)])


def test_the_schema_is_of_what_is_written() -> None:
    """docs/reference/results.schema.json: written by
    `python -c "from loadgen.results.schema import schema; print(schema())" > docs/reference/results.schema.json`."""
    held = (Path(__file__).parents[3] / "docs" / "reference" / "results.schema.json").read_text()
    assert held.strip() == schema()
    fields = json.loads(held)["$defs"]["Results"]["properties"]
    assert fields["version"]["enum"] == [1]
    assert fields["kind"]["enum"] == ["compare", "diff", "report", "run", "simulate", "sweep"]


def test_json_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_json(results(), path)
    assert read_json(path) == results()
    raw = json.loads(path.read_text())
    assert raw["version"] == 1
    assert raw["workload"] == "agent"
    first = raw["arms"][0]
    assert first["name"] == "base"
    assert first["hit_rate"] == pytest.approx(0.2)
    assert first["upper_bound"] == pytest.approx(0.9)
    for latency in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
        assert {"mean", "p50", "p90", "p95", "p99"} <= set(first[latency])
    assert {"requests_per_s", "output_tokens_per_s"} <= set(first["throughput"])
    assert {"name", "requests", "hit_rate"} <= set(first["replicas"][0])


def test_every_field_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "operate" / "loadgen.md").read_text()
    for kind in (Results, Arm, Difference):
        for field in msgspec.structs.fields(kind):
            assert f"`{field.name}`" in text, f"{kind.__name__}.{field.name}"


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_json(results(), path)
    written = path.read_text()
    for text, says in (
        ("{}", "not a results file"),
        (written.replace('"version": 1', '"version": 99'), "version 99"),
        (written.replace('"kind": "compare"', '"kind": "guess"'), "kind"),
    ):
        path.write_text(text)
        with pytest.raises(ResultsError, match=says):
            read_json(path)


def test_csv_has_a_row_for_each_arm() -> None:
    held = results()
    held.axis, held.settings = "requests/s", {"seed": "0"}
    held.arms[1].savings = savings(*held.arms, Price(100.0))
    rows = list(csv.DictReader(io.StringIO(to_csv(held))))
    assert [row["arm"] for row in rows] == ["base", "new"]
    assert float(rows[1]["ttft_ms_p90"]) == pytest.approx(100)
    assert float(rows[0]["hit_rate"]) == pytest.approx(0.2)
    assert rows[0]["goodput_requests_per_s"] == ""
    assert (rows[0]["axis"], rows[0]["seed"], rows[0]["replicas"]) == ("requests/s", "0", "2")
    assert (rows[0]["prompt_tokens"], rows[1]["cached_tokens"]) == ("2000", "1600")
    assert rows[0]["saved_prefill_tokens"] == ""
    assert float(rows[1]["saved_prefill_tokens"]) == pytest.approx(1200)


def test_savings_by_hand() -> None:
    # 60% of 2,000 prompt tokens at 100 tokens/s on 2 GPUs at 3.6 an hour.
    found = savings(arm("base", 1, 20), arm("new", 1, 80), Price(100.0, 2, 3.6))
    assert found is not None
    assert found.prefill_tokens == pytest.approx(1200)
    assert found.gpu_seconds == pytest.approx(24)
    assert found.money == pytest.approx(0.024)
    assert found.money_per_million_requests == pytest.approx(1200)
    worse = savings(arm("base", 1, 80), arm("new", 1, 20), Price(100.0))
    assert worse is not None
    assert worse.gpu_seconds == pytest.approx(-12)
    assert worse.money is None


def test_the_conclusion_says_what_happened() -> None:
    text = conclude([arm("base", 0.4, 20), arm("new", 0.1, 80)], [])
    assert "new reused 80% of the prompt tokens, base 20% (90% was possible)" in text
    assert "4.0 times shorter on average (400 ms to 100 ms)" in text
    assert "Throughput was the same" in text


def test_the_conclusion_says_it_when_it_is_bad() -> None:
    text = conclude([arm("base", 0.1, 80), arm("new", 0.4, 20, failed=5)], [])
    assert "4.0 times LONGER on average (100 ms to 400 ms)" in text
    assert "Throughput was 26% LOWER" in text
    assert "5 of 20 requests of new failed" in text


def test_the_conclusion_does_not_claim_what_is_uncertain() -> None:
    unsure = [
        Difference(f"ttft_ms.{part}", "base", "new", -300.0, -600.0, 5.0, -0.75)
        for part in ("mean", "p90", "p99")
    ]
    text = conclude([arm("base", 0.4, 50), arm("new", 0.1, 50)], unsure)
    assert "not clearly different on average" in text
    assert "both reused 50%" in text
    assert "shorter" not in text


def test_the_conclusion_of_a_sweep_is_that_of_its_highest_load() -> None:
    sweep = [arm("base", 0.1, 20, load=5), arm("new", 0.1, 20, load=5)]
    sweep += [arm("base", 0.4, 20, load=30), arm("new", 0.2, 80, load=30)]
    text = conclude(sweep, [])
    assert text.startswith("At load 30: new reused 80% of the prompt tokens, base 20%")
    assert "2.0 times shorter on average" in text


def test_the_conclusion_of_nothing() -> None:
    assert "No request of new succeeded" in conclude(
        [arm("base", 0.4, 50), arm("new", 0.1, 50, failed=20)], []
    )
    none = msgspec.structs.replace(arm("x", 0.4, 50, failed=20), requests=0)
    assert "No request of x was counted" in conclude([none], [])
    assert conclude([], []) == "Nothing was measured."
    assert conclude([arm("x", 0.4, 50)], []).startswith("x reused 50%")
