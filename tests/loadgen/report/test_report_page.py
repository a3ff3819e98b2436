"""The report: whole, self-contained, honest about names."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from loadgen.metrics import summarise
from loadgen.records import Records
from loadgen.report.page import page, write_html
from loadgen.report.scale import even, logarithmic, short
from loadgen.results import Arm, Difference, Results, Reuse

EVIL = '<script>alert("x")</script>'
VOID = {"meta"}


def arm(name: str, ttft: float, load: float = 0.0) -> Arm:
    records = Records()
    for number in range(40):
        records.add(
            session=number, step=0, scheduled=number * 0.5, sent=number * 0.5,
            first=number * 0.5 + ttft * (1 + number % 7), end=number * 0.5 + 3 * ttft,
            tokens=100, possible_tokens=90, prompt_tokens=100, cached_tokens=number % 90,
            output_tokens=5, replica=f"replica-{number % 3}",
        )  # fmt: skip
    made = summarise(name, records, load=load)
    made.reuse = Reuse(4000, 3000, 2500, 2400, 2300)
    return made


def compared(name: str = "cache_aware") -> Results:
    arms = [arm("round_robin", 0.4), arm(name, 0.1)]
    found = [Difference("ttft_ms.p90", "round_robin", name, -1.0, -2.0, 0.5, -0.1)]
    return Results(
        "compare", name, arms, differences=found, warnings=[name], conclusion=name,
        description=name, settings={name: name},
    )  # fmt: skip


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


def test_a_comparison_has_all_its_parts() -> None:
    html = page(compared())
    found = parsed(html)
    assert found.counts["table"] == 1
    # Two distributions, hit rate over time for each arm, two of spread, the way for each arm.
    assert found.counts["figure"] == 8
    for title in ("Summary", "Latency", "Hit rate over time", "Load spread", "The hits' way"):
        assert f"<h2>{title.replace(chr(39), '&#x27;')}</h2>" in html
    assert "Load and latency" not in html
    assert "prefers-color-scheme: dark" in html


def test_it_asks_nobody_for_anything() -> None:
    html = page(compared())
    found = parsed(html)
    assert found.outside == []
    assert "script" not in found.counts
    assert "url(" not in html
    assert "@import" not in html


def test_names_cannot_break_out() -> None:
    sweep = [arm(EVIL, 0.1, load) for load in (1.0, 2.0)]
    for html in (page(compared(EVIL)), page(Results("sweep", EVIL, sweep))):
        assert "<script" not in html
        parsed(html)


def test_an_interval_with_zero_in_it_is_not_coloured() -> None:
    html = page(compared())
    cell = re.search(r"<th>TTFT p90</th>.*?</tr>", html)
    assert cell is not None
    assert 'class=""' in cell.group()
    assert "[-2.0 to +0.5 ms]" in cell.group()
    better = re.search(r"<th>TTFT mean</th>.*?</tr>", html)
    assert better is not None
    assert 'class="better"' in better.group()


def test_a_sweep_has_load_and_latency() -> None:
    arms = [arm(n, t * load, load) for load in (2.0, 4.0, 8.0) for n, t in (("a", 0.2), ("b", 0.1))]
    html = page(Results("sweep", "ladder", arms))
    found = parsed(html)
    assert "Load and latency" in html
    assert found.counts["circle"] >= 24
    assert "<th>b at 4</th>" in html


def test_results_without_anything_still_make_a_page(tmp_path: Path) -> None:
    empty = Results("run", "agent", [summarise("x", Records())])
    write_html(empty, tmp_path / "r.html")
    parsed((tmp_path / "r.html").read_text())
    parsed(page(Results("run", "agent", [])))


def test_even_ticks() -> None:
    scale = even(0.0, 0.93, 0.0, 100.0)
    assert scale.ticks == pytest.approx((0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
    assert (scale.at(0.0), scale.at(0.5), scale.at(7.0)) == pytest.approx((0.0, 50.0, 100.0))
    assert even(0.0, 0.0, 0.0, 1.0).ticks[-1] == 1.0


def test_logarithmic_ticks() -> None:
    scale = logarithmic([0.03, 4.0], 0.0, 100.0)
    assert scale.ticks == pytest.approx((0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0))
    assert scale.at(0.02) == 0.0
    assert scale.at(0.0) == 0.0
    wide = logarithmic([0.001, 5000.0], 0.0, 1.0)
    assert wide.ticks == pytest.approx((0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0))
    assert logarithmic([3.0], 0.0, 1.0).high > logarithmic([3.0], 0.0, 1.0).low


def test_short_numbers() -> None:
    said = [short(x) for x in (0, 0.25, 100, 9999, 12_000, 2.5e6, 3e9, 0.001)]
    assert said == ["0", "0.25", "100", "9999", "12k", "2.5M", "3G", "1.0e-03"]
