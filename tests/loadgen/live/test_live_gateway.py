"""Arms of a comparison that are the gateway in exact mode."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from loadgen.cli.main import main
from loadgen.live import gateway
from loadgen.live.compare import start_replicas
from loadgen.live.processes import ChildError, Children, run_async
from loadgen.results.schema import read_json
from loadgen.simulate.arms import ARRANGEMENTS


def test_an_exact_arm_begins_only_when_every_replica_is_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Simulated replicas publish no KV events unless asked to: the arm fails and says why."""
    monkeypatch.setattr(gateway, "EXACT_SECONDS", 3.0)
    with Children() as children:
        urls = run_async(start_replicas(children, 1, ["--preset", "quick"]))
        with pytest.raises(ChildError, match=r"not exact after 3 s: 127\.0\.0\.1:.*event"):
            run_async(gateway.start_gateway(children, urls, "cache_aware_exact"))


def test_a_run_asks_a_gateway_for_nothing_that_it_refuses(tmp_path: Path) -> None:
    """Refused paths are errors in the metrics and the log of whoever tries the tool."""
    with Children() as children:
        urls = run_async(start_replicas(children, 1, ["--preset", "quick"]))
        own = run_async(gateway.start_gateway(children, urls, "cache_aware"))
        asked = ["--workload", "hot", "--set", "output_tokens=2", "--rate", "50", "--requests", "5"]
        out = tmp_path / "r.json"
        assert main(["run", "--url", own.url, *asked, "--json", str(out)]) == 0
        metrics = httpx.get(f"{own.admin}/metrics").text
    assert "warmroute_requests_total" in metrics
    assert "refused_path" not in metrics
    # It is still taken for a gateway, whose answers name the replica.
    (arm,) = read_json(out).arms
    assert [(each.name, each.requests) for each in arm.replicas] == [(urls[0][7:], 5)]


def test_exact_arms_are_called_as_in_a_simulation() -> None:
    for name in gateway.EXACT_ARMS:
        assert ARRANGEMENTS[name].exact


def test_what_it_raised_is_told_with_file_and_line() -> None:
    lines = [
        "Traceback (most recent call last):",
        '  File "/a/placer.py", line 7, in place',
        "    choose()",
        '  File "/b/own.py", line 19, in choose',
        '    raise KeyError("x: y")',
        "KeyError: 'x: y'",
    ]
    plain = "\n".join(lines)
    told = ["its gateway raised KeyError: 'x: y' (/b/own.py, line 19)"]
    assert gateway.raised(plain) == told
    assert (
        gateway.raised('{"level":"error"}\n' + json.dumps({"message": "failed", "exc": plain}))
        == told
    )
    assert gateway.raised("warning: nothing of the kind") == []
