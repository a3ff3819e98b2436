"""The quick starts that send load do what they say."""

from __future__ import annotations

import re
from pathlib import Path

from quickstart_world import FOLDER, MARKS, Shell, blocks, cached

pytestmark = MARKS


def test_a_laptop(shell: Shell) -> None:
    said = shell.run(blocks("laptop.md"))
    assert cached(said) == [0, 976]
    assert '"ready":true' in said
    assert '"request_id":"second"' in said
    assert re.search(r'"why":"cache_aware chose 127\.0\.0\.1:\d+ \(cached\)', said)
    assert re.search(r"Failed +0\b", said)
    assert len(re.findall(r'"hit_rate":0\.\d', said)) == 2


def test_two_engines(shell: Shell) -> None:
    shell.start("engines", "warmroute-loadgen replicas --count 2 --port 8001")
    said = shell.run(blocks("two-engines.md"))
    assert "nothing wrong with 2 replicas" in said
    assert re.search(r"Failed +0\b", said)
    for field in ("hit_rate", "hit_rate_recent", "engine_hit_rate"):
        assert len(re.findall(rf'"{field}":0\.\d', said)) == 2, field
    assert re.search(r"^warmroute_reuse_delivered_tokens_total\{.*\} [1-9]", said, re.MULTILINE)


def test_is_it_worth_it(shell: Shell, tmp_path: Path) -> None:
    said = shell.run(blocks("worth-it.md"))
    for line in ("Most possible", "Hit rate", "TTFT", "GPU-seconds of prefill saved"):
        assert line in said
    found = re.search(r"Hit rate +([\d.]+)% +([\d.]+)%", said)
    assert found is not None
    assert float(found[1]) + 5 < float(found[2])
    assert "is the cheapest that holds ttft_p90 <= 2 s, tpot_p90 <= 50 ms" in said
    assert "<h2>Latency</h2>" in (tmp_path / "report.html").read_text("utf-8")
    assert "| Hit rate" in (tmp_path / "report.md").read_text("utf-8")


def test_each_page_but_the_clusters_is_run() -> None:
    """tests/deploy/test_deploy_quickstart.py has the cluster's."""
    run = {"laptop.md", "two-engines.md", "routers.md", "worth-it.md", "gateway-api.md"}
    assert {page.name for page in FOLDER.glob("*.md")} - run == {"README.md", "kubernetes.md"}
