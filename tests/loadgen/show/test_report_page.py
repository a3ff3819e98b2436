"""The report: whole, self-contained, honest about names."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from loadgen.cli.main import main
from loadgen.results.metrics import summarise
from loadgen.results.records import Records
from loadgen.results.schema import (
    REPLICAS,
    Arm,
    Difference,
    Goodput,
    Results,
    Reuse,
    Savings,
    read_json,
)
from loadgen.show.report.charts import Line, line_chart
from loadgen.show.report.page import page, write_html
from loadgen.show.report.scale import even, inside, logarithmic, short

EVIL = '<script>alert("x")</script>'
VOID = {"meta", "wbr"}


def arm(name: str, ttft: float, load: float = 0.0, replicas: int = 3) -> Arm:
    records = Records()
    for number in range(40):
        records.add(
            session=number, step=0, scheduled=number * 0.5, sent=number * 0.5,
            first=number * 0.5 + ttft * (1 + number % 7), end=number * 0.5 + 3 * ttft,
            tokens=100, possible_tokens=90, prompt_tokens=100, cached_tokens=number % 90,
            output_tokens=5, replica=f"replica-{number % replicas}",
        )  # fmt: skip
    made = summarise(name, records, load=load, replicas=[f"replica-{n}" for n in range(replicas)])
    made.reuse = Reuse(4000, 3000, 2500, 2400, 2300)
    return made


def compared(name: str = "cache_aware") -> Results:
    arms = [arm("round_robin", 0.4), arm(name, 0.1)]
    found = [
        Difference("ttft_ms.p90", "round_robin", name, -1.0, -2.0, 0.5, -0.1),
        Difference("ttft_ms.p50", "round_robin", name, -9.0, -12.0, -6.0, -0.5),
        Difference("hit_rate", "round_robin", name, -0.2, -0.3, -0.1, -0.5),
    ]
    return Results(
        "compare", name, arms, differences=found, warnings=[name], conclusion=name,
        description=name, settings={name: name},
    )  # fmt: skip


def sweep(*loads: float, axis: str = "") -> Results:
    arms = [arm(n, t * load, load) for load in loads for n, t in (("a", 0.2), ("b", 0.1))]
    return Results("sweep", "ladder", arms, axis=axis)


def report() -> Results:
    """Two workloads, one at two loads, as the reproduced page has them."""
    cases = (("agent 45/s", 45.0), ("agent 90/s", 90.0), ("mooncake x1", 1.0))
    names = (("round_robin", 0.2), ("cache_aware", 0.1))
    arms = [arm(f"{case}: {name}", ttft, load) for case, load in cases for name, ttft in names]
    better = Difference(
        "ttft_ms.mean", "agent 90/s: round_robin", "agent 90/s: cache_aware",
        -8.0, -9.0, -7.0, -0.5, load=90.0,
    )  # fmt: skip
    return Results("report", "all", arms, differences=[better])


class Balanced(HTMLParser):
    """Fails on tags that do not close in order, and collects what could cause a request."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.outside += [f"{n}={v}" for n, v in attrs if n in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(html: str) -> Balanced:
    parser = Balanced()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def row(html: str, title: str) -> str:
    """A line of the summary."""
    found = re.search(rf"<th>{re.escape(title)}</th>.*?</tr>", html)
    assert found is not None, title
    return found.group()


def test_a_comparison_has_all_its_parts() -> None:
    html = page(compared())
    found = parsed(html)
    assert found.counts["table"] == 1
    # Two distributions, hit rate over time for each arm, two of spread, the way.
    assert found.counts["figure"] == 8
    for title in ("Summary", "Latency", "Hit rate over time", "Load spread", "The reuse funnel"):
        assert f"<h2>{title.replace(chr(39), '&#x27;')}</h2>" in html
    assert "Load and latency" not in html
    assert "prefers-color-scheme: dark" in html


def test_it_asks_nobody_for_anything() -> None:
    for results in (compared(), sweep(1.0, 2.0), report()):
        html = page(results)
        found = parsed(html)
        assert found.outside == []
        assert "script" not in found.counts
        assert "url(" not in html
        assert "@import" not in html


def test_names_cannot_break_out() -> None:
    evil = Results("sweep", EVIL, [arm(EVIL, 0.1, load) for load in (1.0, 2.0)], axis=EVIL)
    for html in (page(compared(EVIL)), page(evil)):
        assert "<script" not in html
        parsed(html)


def test_only_what_an_interval_says_is_coloured() -> None:
    html = page(compared())
    unsure = row(html, "TTFT p90, ms")
    assert 'class=""' in unsure
    assert "[-2.0 to +0.5]" in unsure
    assert 'class="better"' in row(html, "TTFT p50, ms")
    assert 'class="worse"' in row(html, "Hit rate")
    # A quarter of the time, but nothing says that it is no accident.
    without = row(html, "TTFT mean, ms")
    assert "-75%" in without
    assert 'class=""' in without


def test_a_change_that_rounds_to_nothing_has_no_sign() -> None:
    results = compared()
    results.arms[1].ttft_ms = results.arms[0].ttft_ms
    assert "±0%" in row(page(results), "TTFT mean, ms")


def test_what_is_not_known_is_a_dash() -> None:
    results = compared()
    results.arms[0].balance = None
    assert "<td>-</td>" in row(
        page(results), "Busiest replica's work / mean".replace("'", "&#x27;")
    )


def test_goodput_and_money_say_what_they_are() -> None:
    results = compared()
    results.arms[1].goodput = Goodput({"ttft": 500.0, "e2e": 9000.0}, 1.5, 0.9)
    results.arms[1].savings = Savings(1e6, 50.0, 12.34, 56_789.0)
    results.settings = {"gpus": "2", "gpu_hour": "2.5"}
    html = page(results)
    assert "TTFT up to 500 ms and end to end up to 9,000 ms" in html
    assert "with 2 GPUs a replica, at 2.5 for a GPU&#x27;s hour" in html
    assert "12.34" in row(html, "Money saved")
    assert "56,789" in row(html, "Money saved, a million requests")


def test_a_sweep_has_load_and_latency() -> None:
    results = sweep(2.0, 4.0, 8.0)
    better = Difference("ttft_ms.p90", "a", "b", -1.0, -2.0, -0.5, -0.1, load=4.0)
    results.differences = [better]
    html = page(results)
    found = parsed(html)
    assert "Load and latency" in html
    assert found.counts["circle"] >= 36
    assert found.counts["table"] == 1
    assert '<th rowspan="2">4</th>' in html
    # At the load that the interval is of, and nowhere else.
    assert html.count('<td class="better">') == 1
    assert "requests/s asked for" in html


def test_a_sweep_over_replicas_shows_what_each_answered() -> None:
    html = page(sweep(2.0, 4.0, axis=REPLICAS))
    assert "requests/s answered by a replica" in html
    assert "asked for" not in html


def test_distributions_say_at_which_loads_they_are() -> None:
    html = page(sweep(*map(float, range(1, 11))))
    assert "Of 10 loads, 4 are drawn" in html
    for load in (1, 10):
        assert f"<figcaption>TTFT, {load} requests/s</figcaption>" in html
    assert "Drawn for the highest load, 10 requests/s" in html


@pytest.mark.parametrize(("replicas", "rows"), [(8, 8), (64, 64), (200, 64)])
def test_every_replica_has_a_row_over_time_until_there_are_too_many(
    replicas: int, rows: int
) -> None:
    html = page(Results("run", "agent", [arm("x", 0.1, replicas=replicas)]))
    names = set(re.findall(r"<title>(replica-\d+), from", html))
    # Only 40 requests: those that got none have an empty row.
    assert len(names) == min(rows, 40) if replicas < 200 else len(names) < 40
    assert ("(64 of 200 replicas)" in html) == (replicas == 200)


def test_replicas_without_times_have_their_hit_rate_still() -> None:
    results = compared()
    for each in results.arms:
        each.replicas = [
            msgspec.structs.replace(replica, hit_rate_over_time=[]) for replica in each.replicas
        ]
    html = page(results)
    assert "Hit rate of each replica" in html
    assert "<title>replica-0, from" not in html
    assert "Hit rate of each replica" not in page(compared())


def test_a_report_has_a_section_for_each_workload() -> None:
    html = page(report())
    parsed(html)
    assert "<h1>Ways of routing compared</h1>" in html
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Mean time to the first token",
        "Mean time to the last token",
        "agent",
        "mooncake",
    ]
    assert "agent, 90 requests/s" in html
    assert "mooncake, 1 times the trace&#x27;s speed" in html
    assert "cache_aware against round_robin" in html
    assert html.count('<td class="better">') == 2  # in the table of all arms, and on its own


def test_a_point_alone_is_a_dot() -> None:
    chart = line_chart("t", [Line("x", [(0, 1.0), (1, None), (2, 3.0), (3, 4.0)])], "s", "y")
    assert (chart.count("<circle"), chart.count("<polyline")) == (1, 1)


def test_results_without_anything_still_make_a_page(tmp_path: Path) -> None:
    empty = Results("run", "agent", [summarise("x", Records())])
    write_html(empty, tmp_path / "r.html")
    parsed((tmp_path / "r.html").read_text())
    for kind in ("run", "sweep", "report"):
        parsed(page(Results(kind, "agent", [])))  # type: ignore[arg-type]
        parsed(page(Results(kind, "agent", [summarise("x", Records())])))  # type: ignore[arg-type]


def test_even_ticks() -> None:
    scale = even(0.0, 0.93, 0.0, 100.0)
    assert scale.ticks == pytest.approx((0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
    assert (scale.at(0.0), scale.at(0.5), scale.at(7.0)) == pytest.approx((0.0, 50.0, 100.0))
    assert even(0.0, 0.0, 0.0, 1.0).ticks[-1] == 1.0


def test_a_scale_can_end_between_ticks() -> None:
    scale = inside(23.0, 0.0, 100.0)
    assert scale.ticks == pytest.approx((0, 5, 10, 15, 20))
    assert scale.at(23.0) == 100.0
    assert inside(0.0, 0.0, 1.0).high > 0


def test_logarithmic_ticks() -> None:
    scale = logarithmic([0.03, 4.0], 0.0, 100.0)
    assert scale.ticks == pytest.approx((0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0))
    assert scale.at(0.02) == 0.0
    assert scale.at(0.0) == 0.0
    wide = logarithmic([0.001, 5000.0], 0.0, 1.0)
    assert wide.ticks == pytest.approx((0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0))
    assert logarithmic([25.0, 48.0], 0.0, 1.0).ticks == pytest.approx((20, 30, 40, 50))
    assert logarithmic([8.6, 8.9], 0.0, 1.0).ticks == pytest.approx((5, 6, 7, 8, 9, 10))
    assert logarithmic([3.0], 0.0, 1.0).high > logarithmic([3.0], 0.0, 1.0).low


def test_short_numbers() -> None:
    said = [short(x) for x in (0, 0.25, 100, 9999, 12_000, 2.5e6, 3e9, 0.001)]
    assert said == ["0", "0.25", "100", "9999", "12k", "2.5M", "3G", "1.0e-03"]


def test_a_figure_is_the_same_in_table_and_chart(tmp_path: Path) -> None:
    """Of repeats too, in each of which another replica may be the busiest."""
    out = tmp_path / "r"
    command = ["simulate", "--workload", "hot", "--requests", "40", "--replicas", "3"]
    assert main([*command, "--repeats", "3", f"--json={out}"]) == 0
    results = read_json(out)
    drawn = page(results)
    for arm in results.arms:
        assert arm.balance is not None
        assert f"{arm.name}: busiest {arm.balance.work_max_over_mean:.2f} times" in drawn
        assert f"{arm.name}: busiest {arm.balance.requests_max_over_mean:.2f} times" in drawn
        # In the table, and beside the line.
        assert drawn.count(f">{arm.hit_rate:.1%}<") >= 2
