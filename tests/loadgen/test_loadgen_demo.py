"""The demo, shortened: it runs, says what it simulated, and concludes from what it measured."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from loadgen.demo import main
from loadgen.results.schema import read_json


@pytest.mark.timeout(120)
def test_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json, html, svg = tmp_path / "r.json", tmp_path / "r.html", tmp_path / "new" / "r.svg"
    options = ["--seconds", "3", "--rate", "30", "--replicas", "2"]
    status = main([*options, "--json", str(json), "--html", str(html), "--svg", str(svg)])
    said, complained = capsys.readouterr()
    assert status == 0, said + complained
    results = read_json(json)
    assert [arm.name for arm in results.arms] == ["round_robin", "cache_aware"]
    for arm in results.arms:
        assert arm.completed == arm.requests > 0
        assert len(arm.replicas) <= 2
    assert "2 simulated vLLM replicas" in said
    assert "no GPU" in said
    assert results.conclusion in " ".join(said.split())
    assert "<h2>Latency</h2>" in html.read_text()
    drawn = svg.read_text()
    words = " ".join(ElementTree.fromstring(drawn).itertext()).replace("\xa0", " ")
    for shown in ("round_robin", "cache_aware", "TTFT p90, ms", "2 simulated vLLM replicas"):
        assert shown in words
    assert "@font-face" not in drawn
    assert "the numbers of requests need not be equal" in " ".join(said.split())
