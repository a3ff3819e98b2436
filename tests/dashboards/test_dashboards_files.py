"""The files written by code, what panels must have, and the metrics that queries name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dashboards.__main__ import BOARDS, CHART, HERE, files
from dashboards.panels import CLIENTS
from router.telemetry import catalogue
from router.telemetry.record import OUTCOMES, Outcome

ROOT = Path(__file__).parents[2]
HISTOGRAM = ("_bucket", "_sum", "_count")


@pytest.mark.parametrize("folder", [HERE, CHART], ids=["dashboards", "chart"])
@pytest.mark.parametrize("name", [*BOARDS, "rules.yaml"])
def test_files_are_as_the_code_makes_them(folder: Path, name: str) -> None:
    assert (folder / name).read_text() == files()[name], "run: python -m dashboards"


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_each_panel_has_a_unit_and_says_what_to_do(board: object) -> None:
    panels = board.panels  # type: ignore[attr-defined]
    assert len({panel.title for panel in panels}) == len(panels)
    for panel in panels:
        assert panel.unit, panel.title
        assert len(panel.about) > 60, panel.title
        assert panel.about.endswith("."), panel.title


def names_in(expr: str) -> set[str]:
    """The metrics a query reads; recorded ones have a colon."""
    return set(re.findall(r"\b(?:warmroute|process)_[a-z_]+\b", expr))


def known() -> set[str]:
    found = set()
    for metric in (*catalogue.OWN, *catalogue.PROCESS):
        found.add(metric.name)
        if metric.kind == "histogram":
            found |= {metric.name + suffix for suffix in HISTOGRAM}
    return found


def test_every_metric_that_is_asked_for_exists() -> None:
    asked = set()
    for board in BOARDS.values():
        for panel in board.panels:
            for query in panel.queries:
                asked |= names_in(query.expr)
    for group in yaml.safe_load((HERE / "rules.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            asked |= names_in(rule["expr"])
    assert len(asked) > 30
    assert asked <= known()


def test_the_json_is_what_grafana_imports() -> None:
    for name in BOARDS:
        board = json.loads((HERE / name).read_text())
        assert board["uid"].startswith("warmroute-")
        variables = {v["name"] for v in board["templating"]["list"]}
        assert variables == {"datasource", "job", "namespace", "model", "replica"}
        used = {name for each in board["panels"] for name in re.findall(r'=~"\$(\w+)"', str(each))}
        assert used <= variables
        (link,) = board["links"]
        assert (link["type"], link["tags"], link["includeVars"]) == (
            "dashboards",
            ["warmroute"],
            True,
        )
        panels = [panel for panel in board["panels"] if panel["type"] != "row"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        for panel in panels:
            assert panel["targets"]
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["gridPos"].keys() >= {"w", "h"}


def alerts() -> dict[str, dict[str, object]]:
    groups = yaml.safe_load((HERE / "rules.yaml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def test_failures_are_ours_or_the_engines() -> None:
    clients = {word for word in OUTCOMES if re.fullmatch(CLIENTS, word)}
    assert clients == {
        Outcome.CLIENT_GONE,
        Outcome.CLIENT_SLOW,
        Outcome.BAD_REQUEST,
        Outcome.TOO_LARGE,
        Outcome.REFUSED_PATH,
        Outcome.UNAUTHORIZED,
        Outcome.UNKNOWN_MODEL,
    }
    groups = yaml.safe_load((HERE / "rules.yaml").read_text())["groups"]
    (failed,) = [r for g in groups for r in g["rules"] if "failed" in r.get("record", "")]
    assert f'reason!~"{CLIENTS}"' in failed["expr"]


@pytest.mark.parametrize("name", alerts())
def test_each_alert_has_a_runbook_and_a_test(name: str) -> None:
    rule = alerts()[name]
    page = ROOT / rule["annotations"]["runbook_url"]  # type: ignore[index]
    assert len(rule["annotations"]["description"]) > 60  # type: ignore[index]
    text = page.read_text()
    assert name in text
    for part in ("## What it means", "## Look", "## Do"):
        assert part in text, (page, part)
    cases = yaml.safe_load((Path(__file__).parent / "alerts.yaml").read_text())["tests"]
    fired = {
        check["alertname"]
        for case in cases
        for check in case["alert_rule_test"]
        if check["exp_alerts"]
    }
    assert name in fired


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (Debian: apt-get install prometheus)"
)
def test_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    cases = yaml.safe_load((Path(__file__).parent / "alerts.yaml").read_text())
    cases["rule_files"] = [str(HERE / "rules.yaml")]
    file = tmp_path / "alerts.yaml"
    file.write_text(yaml.safe_dump(cases))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
